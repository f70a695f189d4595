// The sort of the deterministic backward, by CUB.
#include <cub/device/device_radix_sort.cuh>

#include <utility>

#include "params.h"
#include "simt.h"

int64_t ddetr_ops::sort_workspace_bytes(int64_t count, int key_bits) {
  size_t bytes = 0;
  cub::DoubleBuffer<uint32_t> keys, indices;
  cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, indices, count, 0, key_bits);
  return static_cast<int64_t>(bytes);
}

const char* ddetr_ops::sort_points(SortedPoints& points, int64_t count, int key_bits, void* stream) {
  cub::DoubleBuffer<uint32_t> keys(points.keys, points.other_keys), indices(points.indices, points.other_indices);
  size_t bytes = static_cast<size_t>(points.workspace_bytes);
  const cudaError_t error = cub::DeviceRadixSort::SortPairs(points.workspace, bytes, keys, indices, count, 0, key_bits,
                                                            static_cast<cudaStream_t>(stream));
  if (keys.Current() != points.keys) std::swap(points.keys, points.other_keys);
  if (indices.Current() != points.indices) std::swap(points.indices, points.other_indices);
  return simt::message_of(error);
}
