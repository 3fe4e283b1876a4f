#include "probe/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "base/isa.h"
#include "base/parallel.h"
#include "probe/chains.h"

double aoq::peak_f32_ref(int64_t iterations) {
  float one = 1;
  const auto step = [&](float sum) {
    asm volatile("" : "+x"(one));  // or the product would be made once
    return sum + one * one;
  };
  return run_chains<float, 1>(iterations, 0.0f, step);
}

namespace {

struct Peak {
  aoq::Isa isa;
  const char* kind;
  const char* instruction;
  double (*run)(int64_t);
};

constexpr Peak kPeaks[] = {
#define AOQ_PEAK(isa, kind, instruction) {aoq::Isa::isa, #kind, instruction, &aoq::peak_##kind##_##isa},
#include "probe/peaks.inc"
#undef AOQ_PEAK
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Runs work(thread) on `threads` threads of torch's pool at once, each after warm_up(); returns the seconds that the
// slowest took for its work.
template <class WarmUp, class Work>
double slowest(int64_t threads, WarmUp warm_up, Work work) {
  std::atomic<double> most{0};
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      warm_up();
      const double start = now();
      work(thread);
      const double seconds = now() - start;
      for (double seen = most; seen < seconds && !most.compare_exchange_weak(seen, seconds);) {
      }
    }
  };
  parallel(threads, 1, body);
  return most;
}

const Peak* peak_at(int64_t index) {
  for (const Peak& peak : kPeaks)
    if (aoq::supported(peak.isa) && index-- == 0) return &peak;
  return nullptr;
}

}  // namespace

// For any Python's ctypes: a benchmark also runs peers in environments that _C is not built for.
extern "C" {

// The instruction of the index-th peak that this machine has, best first, or null.
AOQ_API const char* aoq_peak_instruction(int64_t index) {
  const Peak* peak = peak_at(index);
  return peak ? peak->instruction : nullptr;
}

// int4, int8, bf16 or f32: what the index-th peak multiplies.
AOQ_API const char* aoq_peak_kind(int64_t index) {
  const Peak* peak = peak_at(index);
  return peak ? peak->kind : nullptr;
}

// Runs the index-th peak on `threads` threads at once. Returns the seconds of the slowest, and in `multiply_adds` those
// that all did together.
AOQ_API double aoq_peak(int64_t index, int64_t threads, int64_t iterations, double* multiply_adds) {
  const Peak* peak = peak_at(index);
  std::atomic<double> total{0};
  if (!peak) return 0;
  // A thread that has just woken finds neither the loop in its cache nor the wide registers powered.
  const auto warm_up = [=] { peak->run(iterations / 4); };
  const double seconds = slowest(threads, warm_up, [&](int64_t) {
    const double done = peak->run(iterations);
    for (double seen = total; !total.compare_exchange_weak(seen, seen + done);) {
    }
  });
  *multiply_adds = total;
  return seconds;
}

// Reads `bytes`, a multiple of 64, once, shared out to `threads` threads. Returns the seconds of the slowest, and in
// `words` the exclusive or of all.
AOQ_API double aoq_stream(const uint64_t* data, int64_t bytes, int64_t threads, uint64_t* words) {
  constexpr int64_t kLine = 8, kAhead = 512;  // words
  const int64_t lines = bytes / 64;
  std::atomic<uint64_t> total{0};
  const double seconds = slowest(
      threads, [] {},
      [&](int64_t thread) {
        const uint64_t* line = data + lines * thread / threads * kLine;
        const uint64_t* const end = data + lines * (thread + 1) / threads * kLine;
        uint64_t sums[kLine] = {};
        for (; line < end; line += kLine) {
          __builtin_prefetch(line + kAhead);
          for (int64_t i = 0; i < kLine; ++i) sums[i] ^= line[i];
        }
        for (const uint64_t sum : sums) total ^= sum;
      });
  *words = total;
  return seconds;
}

}  // extern "C"
