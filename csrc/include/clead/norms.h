// Norms of float64 rows whose squares overflow. Torch-free.
#pragma once

namespace clead {

// Rows with at least as large a sum of squares have it, and their norm, from the row times kOfHuge.
constexpr double kHugeSquares = 1e300, kOfHuge = 0x1p-530;

}  // namespace clead
