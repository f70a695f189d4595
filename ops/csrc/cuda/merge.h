// Adding to grad_value with as few global additions as the queries' neighbourhood allows.
//
// The queries of a block lie side by side, so their points' corners meet in the same tokens: often on the fine
// levels, nearly always on the coarse ones. Each round every thread puts its point's four corners into a hash
// table in shared memory that is keyed by token and chains what falls together; then the groups take the
// tokens in turn, add up the chain in registers and send one addition per token and channel to memory.
// (Adding in shared memory instead would not help: floats are added there by compare-and-swap loops.)
#pragma once

#include "points.h"

namespace ddetr_ops {

constexpr int kNobody = -1;

// The block's tables, laid out one after the other in dynamic shared memory.
template <typename A>
struct MergeTables {
  A* grads;     // (groups, D) grad_output of the block's queries
  A* weights;   // (entries,) weight of a corner; entry = thread * 4 + corner
  int* next;    // (entries,) the chain's next entry
  int* tokens;  // (slots,) the hash table's keys
  int* chains;  // (slots,) each key's first entry
  int* used;    // (entries,) slots in use, `count[0]` of them
  int* count;
  int slots;

  DDETR_OPS_HD static constexpr int entries_of(int threads) { return 4 * threads; }
  DDETR_OPS_HD static constexpr int slots_of(int threads) { return 2 * entries_of(threads); }
  static int64_t bytes(int threads, int groups, int64_t channels) {
    return groups * channels * sizeof(A) + entries_of(threads) * (sizeof(A) + 2 * sizeof(int)) +
           2 * slots_of(threads) * sizeof(int) + 16;
  }

  DDETR_OPS_DEVICE MergeTables(unsigned char* memory, int threads, int groups, int channels) {
    grads = reinterpret_cast<A*>(memory);
    weights = grads + groups * channels;
    next = reinterpret_cast<int*>(weights + entries_of(threads));
    used = next + entries_of(threads);
    slots = slots_of(threads);
    tokens = used + entries_of(threads);
    chains = tokens + slots;
    count = chains + slots;
  }

  DDETR_OPS_DEVICE void clear_all(int thread, int threads) {
    for (int i = thread; i < slots; i += threads) tokens[i] = chains[i] = kNobody;
    if (thread == 0) *count = 0;
  }

  DDETR_OPS_DEVICE void insert(int32_t token, int entry, A weight) {
    unsigned slot = static_cast<unsigned>(token) * 2654435769u;  // 2^32 / golden ratio
    slot = (slot >> 16) & (slots - 1);
    for (;;) {
      const int owner = simt::compare_exchange(tokens + slot, kNobody, token);
      if (owner == kNobody) used[simt::fetch_add(count, 1)] = static_cast<int>(slot);
      if (owner == kNobody || owner == token) break;
      slot = (slot + 1) & (slots - 1);
    }
    weights[entry] = weight;
    next[entry] = simt::exchange(chains + slot, entry);
  }
};

// One round: insert, add up, send, and leave the tables empty. All threads of the block take part.
template <typename C>
DDETR_OPS_DEVICE void merge_and_add(const Problem<typename C::T>& p, const Place<C>& at,
                                    MergeTables<typename C::A>& tables, const Point<typename C::A>& point) {
  using A = typename C::A;
  constexpr int WIDTH = simt::kReductionWidth;
  constexpr int STEP = C::LANES * WIDTH;                   // channels that a group sends at once
  constexpr int PARTS = C::D ? C::D / STEP : 1;            // of these, how many one walk along a chain adds up
  const int thread = simt::thread(), threads = simt::block_threads();
  if (at.live) {
    A weights[4];
    corner_weights(point.cell, point.weight, weights);
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (weights[c] != A(0)) tables.insert(corner_row(point.row, point.width, c), 4 * thread + c, weights[c]);
  }
  simt::block_barrier();
  const int count = *tables.count;
  A* base = p.grad_value + at.map * at.channels;
  for (int i = at.group; i < count; i += at.groups) {
    const int slot = tables.used[i];
    A* row = at_row(base, p.grad_row, tables.tokens[slot]);
    for (int begin = at.lane * WIDTH; begin < at.channels; begin += PARTS * STEP) {
      A sum[PARTS][WIDTH] = {};
      for (int entry = tables.chains[slot]; entry != kNobody; entry = tables.next[entry]) {
        const A weight = tables.weights[entry];
        const A* grads = tables.grads + entry / (4 * C::LANES) * at.channels + begin;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
          A grad[WIDTH];
          load(grads + part * STEP, grad);
#pragma unroll
          for (int w = 0; w < WIDTH; ++w) sum[part][w] += weight * grad[w];
        }
      }
#pragma unroll
      for (int part = 0; part < PARTS; ++part) simt::reduce_add(row + begin + part * STEP, sum[part]);
    }
  }
  simt::block_barrier();
  for (int i = thread; i < count; i += threads) {
    const int slot = tables.used[i];
    tables.tokens[slot] = tables.chains[slot] = kNobody;
  }
  if (thread == 0) *tables.count = 0;
  simt::block_barrier();
}

}  // namespace ddetr_ops
