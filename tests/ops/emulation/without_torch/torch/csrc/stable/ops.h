// What csrc/cpu/run.h uses of PyTorch, so that the CPU kernels run in a program without it. One thread does the work of
// `threads`, their ranges from the last to the first: no result may depend on who comes first.
#pragma once
#include <cstdint>

namespace torch::stable {

inline int64_t threads = 1;

inline uint32_t get_num_threads() { return uint32_t(threads); }

template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  const int64_t even = (end - begin + threads - 1) / threads, size = even > grain_size ? even : grain_size;
  for (int64_t i = size > 0 ? (end - begin + size - 1) / size : 0; i-- > 0;) {
    const int64_t first = begin + i * size;
    f(first, first + size < end ? first + size : end);
  }
}

}  // namespace torch::stable
