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

// What to take from the exponents of a row whose sum has this logarithm: an integer, or where T has no integer as close
// as that, the nearest number.
template <class T>
T shift_for(const Call<T>& call, double log) {
  if (call.p.bounded) return call.p.top;
  return static_cast<T>(std::fabs(log) < 4e6 ? std::floor(log) : log);
}

// The logit of a listed pair of the sigmoid loss.
template <class T>
double listed_logit(const Call<T>& call, int64_t i, int64_t at) {
  return call.listed_score(i, at) / call.args.temperature + *call.args.bias;
}

// -log of the probability of every listed positive of row i where its denominator is its own: visit(at, value).
template <class T, class Visit>
void own_positives(const Call<T>& call, int64_t i, double over_negatives, double mean, Visit&& visit) {
  for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
    visit(at, softplus(over_negatives - (call.listed_score(i, at) - mean) / call.args.temperature));
}

}  // namespace
}  // namespace clead
