// A GPU made of one CPU thread, for ops/csrc/cuda/simt.h: every GPU thread is a coroutine with a stack of its own.
//
// A block's threads run one after the other, each up to its next exchange with its warp or wait for its block;
// whoever all needed partners have reached goes on. Between two such points threads run in an order that changes
// from launch to launch, so that a result that hangs on a missing barrier shows as a wrong number. A wait that
// some partner never joins is an error, not a hang. Neither speed nor memory ordering is emulated.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#define DDETR_OPS_KERNEL(threads, blocks) void
#define DDETR_OPS_DEVICE inline

namespace simt {

#if !defined(DDETR_OPS_EMULATED_REDUCTION_WIDTH)
#define DDETR_OPS_EMULATED_REDUCTION_WIDTH 4
#endif
constexpr int kReductionWidth = DDETR_OPS_EMULATED_REDUCTION_WIDTH;
constexpr int kStackBytes = 64 * 1024;

enum class State { kReady, kWaitsForWarp, kWaitsForBlock, kDone };

struct Thread {
  ucontext_t context;
  State state;
  int exchanges;  // how many there were: even and odd ones use different mailboxes
  std::unique_ptr<char[]> stack;
};

struct Warp {
  alignas(16) unsigned char mailbox[2][32][16];
};

struct Block {
  ucontext_t scheduler;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  unsigned index = 0;
  int current = 0;
  int64_t additions = 0;  // to global memory, since the program started
};

inline Block& machine() {
  static Block block;
  return block;
}

inline int thread() { return machine().current; }
inline int block_threads() { return static_cast<int>(machine().threads.size()); }
inline unsigned block() { return machine().index; }
inline unsigned char* shared_memory() {
  unsigned char* raw = machine().shared.data();
  return raw + (16 - reinterpret_cast<uintptr_t>(raw) % 16) % 16;
}

inline void wait(State state) {
  Block& block = machine();
  Thread& me = block.threads[static_cast<size_t>(block.current)];
  me.state = state;
  swapcontext(&me.context, &block.scheduler);
}
inline void block_barrier() { wait(State::kWaitsForBlock); }

// Puts a value into my mailbox, waits for the warp, and reads lane `source` of the warp's.
template <typename V, typename Read>
auto exchange_in_warp(V value, const Read& read) {
  static_assert(sizeof(V) <= 16);
  Thread& me = machine().threads[static_cast<size_t>(thread())];
  Warp& warp = machine().warps[static_cast<size_t>(thread() / 32)];
  auto& mailbox = warp.mailbox[me.exchanges++ % 2];
  std::memcpy(mailbox[thread() % 32], &value, sizeof value);
  wait(State::kWaitsForWarp);
  return read([&mailbox](int lane) {
    V theirs;
    std::memcpy(&theirs, mailbox[lane], sizeof theirs);
    return theirs;
  });
}

template <int WIDTH, typename V>
V shuffle(V value, int source) {
  const int lane = thread() % 32 / WIDTH * WIDTH + source % WIDTH;
  return exchange_in_warp(value, [lane](const auto& of) { return of(lane); });
}
template <typename V>
V shuffle_xor(V value, int mask) {
  const int lane = thread() % 32 ^ mask;
  return exchange_in_warp(value, [lane](const auto& of) { return of(lane); });
}
inline unsigned ballot(bool vote) {
  return exchange_in_warp(vote, [](const auto& of) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(of(lane)) << lane;
    return bits;
  });
}
inline int lowest_bit(unsigned bits) { return std::countr_zero(bits); }

inline int compare_exchange(int* at, int expected, int wanted) {
  const int old = *at;
  if (old == expected) *at = wanted;
  return old;
}
inline int exchange(int* at, int value) { return std::exchange(*at, value); }
inline int fetch_add(int* at, int value) { return std::exchange(*at, *at + value); }

template <typename A, int N>
void reduce_add(A* at, const A (&values)[N]) {
  for (int i = 0; i < N; ++i) at[i] += values[i];
  ++machine().additions;
}

// Lets waiting threads go on where all their partners wait too. False: nobody can.
inline bool release(Block& block) {
  const auto all = [&](size_t first, size_t last, State state) {
    return std::all_of(block.threads.begin() + static_cast<long>(first), block.threads.begin() + static_cast<long>(last),
                       [state](const Thread& t) { return t.state == state || t.state == State::kDone; });
  };
  bool any = false;
  const auto wake = [&](size_t first, size_t last, State state) {
    for (size_t i = first; i < last; ++i) {
      if (block.threads[i].state != state) continue;
      block.threads[i].state = State::kReady;
      any = true;
    }
  };
  const size_t many = block.threads.size();
  for (size_t warp = 0; warp < many; warp += 32) {
    // An exchange needs all 32 lanes: one that has left does not count as there.
    const bool whole = std::none_of(block.threads.begin() + static_cast<long>(warp),
                                    block.threads.begin() + static_cast<long>(warp + 32),
                                    [](const Thread& t) { return t.state == State::kDone; });
    if (whole && all(warp, warp + 32, State::kWaitsForWarp)) wake(warp, warp + 32, State::kWaitsForWarp);
  }
  if (all(0, many, State::kWaitsForBlock)) wake(0, many, State::kWaitsForBlock);
  return any;
}

template <typename Problem>
struct Call {
  void (*kernel)(Problem);
  const Problem* problem;
  static inline Call current;
  static void enter() {
    current.kernel(*current.problem);
    wait(State::kDone);
  }
};

template <typename Problem>
bool run_block(Block& block, std::minstd_rand& random) {
  for (Thread& thread : block.threads) {
    thread.state = State::kReady;
    thread.exchanges = 0;
    getcontext(&thread.context);
    if (!thread.stack) thread.stack = std::make_unique<char[]>(kStackBytes);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, Call<Problem>::enter, 0);
  }
  std::vector<int> order(block.threads.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  do {
    std::shuffle(order.begin(), order.end(), random);
    for (int i : order) {
      Thread& thread = block.threads[static_cast<size_t>(i)];
      if (thread.state != State::kReady) continue;
      block.current = i;
      swapcontext(&block.scheduler, &thread.context);
    }
  } while (release(block));
  return std::all_of(block.threads.begin(), block.threads.end(), [](const Thread& t) { return t.state == State::kDone; });
}

template <typename Problem>
const char* launch(void (*kernel)(Problem), int64_t blocks, int threads, int64_t shared_bytes, void*,
                   const Problem& problem) {
  static std::minstd_rand random(1);
  if (threads % 32 != 0 || threads > 1024) return "a block must be whole warps";
  Block& block = machine();
  block.threads.resize(static_cast<size_t>(threads));
  block.warps.resize(static_cast<size_t>(threads / 32));
  Call<Problem>::current = {kernel, &problem};
  for (int64_t i = 0; i < blocks; ++i) {
    block.index = static_cast<unsigned>(i);
    block.shared.assign(static_cast<size_t>(shared_bytes + 16), 0xcd);  // what a GPU leaves there is not zero either
    if (!run_block<Problem>(block, random)) return "threads wait for each other for ever";
  }
  return nullptr;
}

inline const char* use_device(int) { return nullptr; }

}  // namespace simt
