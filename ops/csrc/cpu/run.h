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
  if (data == nullptr || bytes < int64_t(kBlock)) return;
  // Whole pages only; the rest may belong to others and is faulted in as usual.
  const uintptr_t from = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  const int64_t first_block = int64_t(from / kBlock), end_block = int64_t((to - 1) / kBlock) + 1;
  torch::stable::parallel_for(first_block, end_block, 1, [&](int64_t begin, int64_t end) {
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

// One backward call. Gradients whose memory is null are not computed.
class Backward {
 public:
  Backward(const Shape& shape, const Sampling& sampling, const Array& value, const void* grad_output,
           const Array& grad_value, const SamplingGrads& grads)
      : s_(shape), sampling_(sampling), value_(value), grad_output_(grad_output), grad_value_(grad_value),
        grads_(grads), at_once_(sums_apart() ? std::min(heads(), threads()) : heads()),
        packed_(packs() && wants_points() ? at_once_ * s_.tokens * s_.channels * size() : 0),
        sums_(sums_apart() && wants_value() ? at_once_ * s_.tokens * s_.channels * acc_size() : 0),
        shares_(grads.references.data ? rows() * s_.heads * reference_row() * acc_size() : 0) {
    if (grads.references.data) grads_.references = {shares_.get(), acc()};
  }

  void run(const Array& grad_references) const {
    const int64_t points = rows() * s_.heads * s_.points;
    const int64_t value_bytes = heads() * s_.tokens * s_.channels * size();
    populate(grad_value_.data, value_bytes);
    populate(grads_.locations.data, points * 2 * size_of(grads_.locations.dtype));
    populate(grads_.weights.data, points * size_of(grads_.weights.dtype));
    if (wants_value() && !sums_apart()) {
      torch::stable::parallel_for(0, value_bytes, 1 << 20, [&](int64_t begin, int64_t end) {
        memset(static_cast<char*>(grad_value_.data) + begin, 0, size_t(end - begin));
      });
    }
    each_group(s_, at_once_, [&](const Group& group) { run_group(group); });
    if (grad_references.data == nullptr) return;
    torch::stable::parallel_for(0, rows(), 256, [&](int64_t begin, int64_t end) {
      kernels().add_reference_grads[acc() == DType::f64](s_, sampling_.reference_dim, shares_.get(), grad_references,
                                                         Range{begin, end});
    });
  }

 private:
  int64_t heads() const { return s_.batch * s_.heads; }
  int64_t rows() const { return s_.batch * s_.queries; }
  int64_t reference_row() const { return s_.levels * sampling_.reference_dim; }
  DType acc() const { return acc_of(value_.dtype); }
  int64_t size() const { return size_of(value_.dtype); }
  int64_t acc_size() const { return size_of(acc()); }
  bool packs() const { return worth_packing(s_); }
  bool sums_apart() const { return packs() || size() != acc_size(); }
  bool wants_value() const { return grad_value_.data != nullptr; }
  bool wants_points() const { return grads_.locations.data || grads_.weights.data || grads_.references.data; }

  Rows value_rows(const Group& group, int64_t i) const {
    return packs() ? group.packed(packed_.get(), size(), i) : group.in_tensor(value_.data, size(), i);
  }
  Rows sums_rows(const Group& group, int64_t i) const {
    return sums_apart() ? group.packed(sums_.get(), acc_size(), i)
                        : group.in_tensor(grad_value_.data, acc_size(), i);
  }

  void run_group(const Group& group) const {
    if (wants_points() && packs()) pack(s_, group, value_, packed_.get());
    if (wants_value() && sums_apart()) {
      group.each_rows([&](int64_t i, Range tokens) {
        const int64_t row = s_.channels * acc_size();
        memset(static_cast<char*>(sums_rows(group, i).data) + tokens.begin * row, 0,
               size_t((tokens.end - tokens.begin) * row));
      });
    }
    if (group.count() % threads() == 0) {
      run_heads(group);
    } else {
      run_pieces(group);
    }
    if (wants_value() && sums_apart()) {
      group.each_rows([&](int64_t i, Range tokens) {
        kernels().unpack[int(value_.dtype)](s_, group.head(i), sums_rows(group, i), grad_value_.data, tokens);
      });
    }
  }

  // A whole head for each thread, all its gradients in one sweep.
  void run_heads(const Group& group) const {
    group.each_piece(1, [&](int64_t i, int64_t, void* scratch) {
      run_kernel(group, i, grads_, Range{0, s_.queries}, wants_value() ? sums_rows(group, i) : Rows{},
                 Range{0, s_.tokens}, scratch);
    });
  }

  // Several threads for each head: the points' gradients by pieces of the queries, the value's by parts of its tokens,
  // each of which looks at all points. So no row of sums belongs to two threads.
  void run_pieces(const Group& group) const {
    const int64_t pieces = query_pieces(s_, group.count());
    if (wants_points()) {
      group.each_piece(pieces, [&](int64_t i, int64_t piece, void* scratch) {
        run_kernel(group, i, grads_, piece_of(s_.queries, piece, pieces), Rows{}, Range{}, scratch);
      });
    }
    const int64_t parts = (threads() + group.count() - 1) / group.count();
    if (wants_value()) {
      group.each_piece(parts, [&](int64_t i, int64_t part, void* scratch) {
        run_kernel(group, i, SamplingGrads{}, Range{0, s_.queries}, sums_rows(group, i),
                   Range{part_begin(s_, part, parts), part_begin(s_, part + 1, parts)}, scratch);
      });
    }
  }

  void run_kernel(const Group& group, int64_t i, const SamplingGrads& grads, Range queries, Rows sums, Range tokens,
                  void* scratch) const {
    kernels().backward[int(value_.dtype)](s_, sampling_, group.head(i), value_rows(group, i), grad_output_, grads,
                                          queries, sums, tokens, scratch);
  }

  const Shape& s_;
  const Sampling& sampling_;
  const Array value_;
  const void* const grad_output_;
  const Array grad_value_;
  SamplingGrads grads_;
  const int64_t at_once_;  // heads
  const Scratch packed_, sums_, shares_;
};

inline void run_backward(const Shape& s, const Sampling& sampling, const Array& value, const void* grad_output,
                         const Array& grad_value, const SamplingGrads& grads) {
  Backward(s, sampling, value, grad_output, grad_value, grads).run(grads.references);
}

}  // namespace ddetr_ops
