// In place of sort.cu: the standard library's stable sort.
#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda/params.h"

int64_t ddetr_ops::sort_workspace_bytes(int64_t, int) { return 1; }

const char* ddetr_ops::sort_points(SortedPoints& points, int64_t count, int key_bits, void*) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  const uint32_t mask = static_cast<uint32_t>((uint64_t(1) << key_bits) - 1);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return (points.keys[a] & mask) < (points.keys[b] & mask); });
  for (int64_t i = 0; i < count; ++i) {
    points.other_keys[i] = points.keys[order[static_cast<size_t>(i)]];
    points.other_indices[i] = points.indices[order[static_cast<size_t>(i)]];
  }
  std::swap(points.keys, points.other_keys);
  std::swap(points.indices, points.other_indices);
  return nullptr;
}
