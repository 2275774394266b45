// Sums of exponentials by their logarithms, and listed positives with denominators of their own.
#pragma once

#include "contrastive_call.h"

namespace clead {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

double log_of(double sum, double max, double lowest) {
  return max < lowest || sum == 0 ? kNone : std::log(sum) + max / kLog2e;
}

double log_add(double x, double y) {
  if (x == kNone || y == kNone) return x == kNone ? y : x;
  return std::max(x, y) + std::log1p(std::exp(-std::fabs(x - y)));
}

double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

// -log of the probability of every listed positive of row i where its denominator is its own: visit(at, value).
template <class T, class Visit>
void own_positives(const Call<T>& call, int64_t i, double over_negatives, double mean, Visit&& visit) {
  for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
    visit(at, softplus(over_negatives - (call.listed_dot(i, at) - mean) / call.args.temperature));
}

}  // namespace
}  // namespace clead
