// Scheduling of the CPU kernels: memory, and the work shared out among PyTorch's threads.
//
// Heads are processed in groups of as many as there are threads. A group's rows of `value` are first copied together
// where each is read several times: a head's rows lie M * D elements apart, which leaves most of a cache's sets unused.
// Results do not depend on the number of threads: no sum is split among them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "features.h"
#include "problem.h"

namespace ddetr_ops {

// The kernels of this machine; DDETR_OPS_ISA=plain asks for those of every machine, for tests. Registers of 512 bits
// were tried: on a Zen 4 they made the forward a fifth slower and the backward almost twice.
inline const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#if defined(__x86_64__)
    const char* isa = std::getenv("DDETR_OPS_ISA");
    if (has_avx2_fma_f16c() && std::string(isa ? isa : "") != "plain") return kKernelsAvx2;
#endif
    return kKernelsPlain;
  }();
  return chosen;
}

// Maps fresh memory in a few system calls: page faults, one every 4 KiB, take longer than the writes themselves, and a
// large result of PyTorch's allocator is always fresh. A huge page of 2 MiB is mapped in a third of the time that its
// 4 KiB pages take, except in a virtual machine that had returned it to its host: there it takes longer than them. Only
// the time tells, so a thread stops asking for huge pages after one that was slow.
inline void populate(void* data, int64_t bytes) {
#if defined(MADV_POPULATE_WRITE) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kBlock = uintptr_t(1) << 21;
  constexpr auto kSlow = std::chrono::microseconds(500);
  static const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  // Whole pages only; the rest may belong to others and is faulted in as usual.
  const uintptr_t from = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  if (data == nullptr || bytes < int64_t(kBlock)) return;
  torch::stable::parallel_for(int64_t(from / kBlock), int64_t((to - 1) / kBlock) + 1, 1, [&](int64_t begin, int64_t end) {
    bool huge = true;
    for (int64_t block = begin; block < end; ++block) {
      const uintptr_t first = std::max(from, uintptr_t(block) * kBlock);
      const uintptr_t last = std::min(to, uintptr_t(block + 1) * kBlock);
      void* const at = reinterpret_cast<void*>(first);
      const bool asks = huge && last - first == kBlock;
      // Best effort: a kernel without these requests (before Linux 5.14) faults the pages in as usual.
      if (asks) (void)madvise(at, kBlock, MADV_HUGEPAGE);
      const auto start = std::chrono::steady_clock::now();
      (void)madvise(at, last - first, MADV_POPULATE_WRITE);
      if (asks && std::chrono::steady_clock::now() - start > kSlow) huge = false;
    }
  });
#else
  (void)data, (void)bytes;
#endif
}

// Uninitialised memory, aligned to a cache line.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(new char[size_t(bytes) + 64]) {}
  char* get() const {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t(63));
  }

 private:
  std::unique_ptr<char[]> memory_;
};

inline int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
inline DType acc_of(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// Heads [first, first + count) of all B * M, and their rows: in the tensor (B, S, M, D), or packed as (count, S, D).
class Group {
 public:
  Group(const Shape& shape, int64_t first, int64_t count) : s_(shape), first_(first), count_(count) {}

  int64_t count() const { return count_; }
  Head head(int64_t i) const { return {(first_ + i) / s_.heads, (first_ + i) % s_.heads}; }
  Rows in_tensor(void* data, int64_t size, int64_t i) const {
    const Head h = head(i);
    return {static_cast<char*>(data) + (h.batch * s_.tokens * s_.heads + h.head) * s_.channels * size,
            s_.heads * s_.channels};
  }
  Rows packed(void* data, int64_t size, int64_t i) const {
    return {static_cast<char*>(data) + i * s_.tokens * s_.channels * size, s_.channels};
  }

  // Calls f(head of the group, tokens) in parallel, for all tokens of all heads.
  template <typename F>
  void each_rows(const F& f) const {
    torch::stable::parallel_for(0, count_ * s_.tokens, 4096, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t i = begin / s_.tokens, until = std::min(end, (i + 1) * s_.tokens);
        f(i, Range{begin - i * s_.tokens, until - i * s_.tokens});
        begin = until;
      }
    });
  }
  // Calls f(head of the group, piece, scratch) in parallel, for `pieces` of each head.
  template <typename F>
  void each_piece(int64_t pieces, const F& f) const {
    torch::stable::parallel_for(0, count_ * pieces, 1, [&](int64_t begin, int64_t end) {
      const Scratch scratch(kernels().scratch_bytes(s_));
      for (int64_t i = begin; i < end; ++i) f(i / pieces, i % pieces, scratch.get());
    });
  }

 private:
  const Shape& s_;
  int64_t first_, count_;
};

inline int64_t threads() { return std::max<int64_t>(1, int64_t(torch::stable::get_num_threads())); }

// Calls f(group) for all heads, at most `at_once` at a time.
template <typename F>
void each_group(const Shape& s, int64_t at_once, const F& f) {
  const int64_t heads = s.batch * s.heads;
  for (int64_t first = 0; first < heads; first += at_once) f(Group(s, first, std::min(at_once, heads - first)));
}

inline bool worth_packing(const Shape& s) { return s.heads > 1 && s.queries * s.points >= s.tokens; }

inline void pack(const Shape& s, const Group& group, const Array& value, void* packed) {
  const int64_t size = size_of(value.dtype);
  const size_t row = size_t(s.channels * size);
  group.each_rows([&](int64_t i, Range tokens) {
    const Rows from = group.in_tensor(value.data, size, i), to = group.packed(packed, size, i);
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
      memcpy(static_cast<char*>(to.data) + t * to.stride * size, static_cast<char*>(from.data) + t * from.stride * size,
             row);
    }
  });
}

// Pieces of a head's queries: a few for each thread, but none so small that its start would show.
inline int64_t query_pieces(const Shape& s, int64_t heads) {
  const int64_t by_work = s.queries * s.points * (16 + 4 * s.channels) / 65536;
  const int64_t by_threads = heads % threads() == 0 ? 1 : (4 * threads() + heads - 1) / heads;
  return std::max<int64_t>(1, std::min(by_work, by_threads));
}
inline Range piece_of(int64_t n, int64_t piece, int64_t pieces) {
  return {n * piece / pieces, n * (piece + 1) / pieces};
}

// First token of a part of the tokens, all parts costing about the same: levels by their points, rows alike.
inline int64_t part_begin(const Shape& s, int64_t part, int64_t parts) {
  if (part == parts) return s.tokens;
  const int64_t target = s.points * part;  // points done before, times `parts`
  for (int64_t l = 0; l < s.levels; ++l) {
    const Level& level = s.level[l];
    const int64_t into = target - level.first_point * parts, cost = level.num_points * parts;
    if (into < cost) return level.start + level.height * into / cost * level.width;
  }
  return s.tokens;
}

inline void run_forward(const Shape& s, const Sampling& sampling, const Array& value, void* output) {
  const Kernels& k = kernels();
  const int64_t size = size_of(value.dtype), heads = s.batch * s.heads;
  const bool packs = worth_packing(s);
  const int64_t at_once = packs ? std::min(heads, threads()) : heads;
  populate(output, s.batch * s.queries * s.heads * s.channels * size);
  const Scratch packed(packs ? at_once * s.tokens * s.channels * size : 0);
  each_group(s, at_once, [&](const Group& group) {
    if (packs) pack(s, group, value, packed.get());
    const int64_t pieces = query_pieces(s, group.count());
    group.each_piece(pieces, [&](int64_t i, int64_t piece, void* scratch) {
      const Rows rows = packs ? group.packed(packed.get(), size, i) : group.in_tensor(value.data, size, i);
      k.forward[int(value.dtype)](s, sampling, group.head(i), rows, output, piece_of(s.queries, piece, pieces),
                                  scratch);
    });
  });
}

inline void set_zero(const Array& array, int64_t bytes) {
  torch::stable::parallel_for(0, bytes, 1 << 20, [&](int64_t begin, int64_t end) {
    memset(static_cast<char*>(array.data) + begin, 0, size_t(end - begin));
  });
}

// Computes the gradients whose memory is not null.
inline void run_backward(const Shape& s, const Sampling& sampling, const Array& value, const void* grad_output,
                         const Array& grad_value, SamplingGrads grads) {
  const Kernels& k = kernels();
  const int64_t size = size_of(value.dtype), acc_size = size_of(acc_of(value.dtype)), heads = s.batch * s.heads;
  const int64_t rows = s.batch * s.queries, elements = s.batch * s.tokens * s.heads * s.channels;
  const bool packs = worth_packing(s), sums_apart = packs || size != acc_size;
  const bool wants_value = grad_value.data != nullptr;
  const bool points = grads.locations.data || grads.weights.data || grads.references.data;
  const int64_t at_once = sums_apart ? std::min(heads, threads()) : heads;
  const int64_t rows_elements = at_once * s.tokens * s.channels;
  const Scratch packed(packs && points ? rows_elements * size : 0);
  const Scratch sums(sums_apart && grad_value.data ? rows_elements * acc_size : 0);

  const Array references = grads.references;
  const Scratch shares(references.data ? rows * s.heads * s.levels * sampling.reference_dim * acc_size : 0);
  if (references.data) grads.references = {shares.get(), acc_of(value.dtype)};
  populate(grad_value.data, elements * size);
  populate(grads.locations.data, rows * s.heads * s.points * 2 * size_of(grads.locations.dtype));
  populate(grads.weights.data, rows * s.heads * s.points * size_of(grads.weights.dtype));
  if (wants_value && !sums_apart) set_zero(grad_value, elements * size);

  each_group(s, at_once, [&](const Group& group) {
    const auto value_rows = [&](int64_t i) {
      return packs ? group.packed(packed.get(), size, i) : group.in_tensor(value.data, size, i);
    };
    const auto sums_rows = [&](int64_t i) {
      return sums_apart ? group.packed(sums.get(), acc_size, i) : group.in_tensor(grad_value.data, acc_size, i);
    };
    if (points && packs) pack(s, group, value, packed.get());
    if (wants_value && sums_apart) {
      group.each_rows([&](int64_t i, Range tokens) {
        memset(static_cast<char*>(sums_rows(i).data) + tokens.begin * s.channels * acc_size, 0,
               size_t((tokens.end - tokens.begin) * s.channels * acc_size));
      });
    }
    const auto run = [&](int64_t i, const SamplingGrads& point_grads, Range queries, Rows to, Range tokens,
                         void* scratch) {
      k.backward[int(value.dtype)](s, sampling, group.head(i), value_rows(i), grad_output, point_grads, queries, to,
                                   tokens, scratch);
    };
    const Range all_queries{0, s.queries}, all_tokens{0, s.tokens};
    if (group.count() % threads() == 0) {  // all in one sweep
      group.each_piece(1, [&](int64_t i, int64_t, void* scratch) {
        run(i, grads, all_queries, wants_value ? sums_rows(i) : Rows{}, all_tokens, scratch);
      });
    } else {
      const int64_t pieces = query_pieces(s, group.count());
      if (points) {
        group.each_piece(pieces, [&](int64_t i, int64_t piece, void* scratch) {
          run(i, grads, piece_of(s.queries, piece, pieces), Rows{}, Range{}, scratch);
        });
      }
      const int64_t parts = (threads() + group.count() - 1) / group.count();
      if (wants_value) {
        group.each_piece(parts, [&](int64_t i, int64_t part, void* scratch) {
          run(i, SamplingGrads{}, all_queries, sums_rows(i),
              Range{part_begin(s, part, parts), part_begin(s, part + 1, parts)}, scratch);
        });
      }
    }
    if (wants_value && sums_apart) {
      group.each_rows([&](int64_t i, Range tokens) {
        k.unpack[int(value.dtype)](s, group.head(i), sums_rows(i), grad_value.data, tokens);
      });
    }
  });
  if (references.data) {
    torch::stable::parallel_for(0, rows, 256, [&](int64_t begin, int64_t end) {
      k.add_reference_grads[acc_of(value.dtype) == DType::f64](s, sampling.reference_dim, shares.get(), references,
                                                               Range{begin, end});
    });
  }
}

}  // namespace ddetr_ops
