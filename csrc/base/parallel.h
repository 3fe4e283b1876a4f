// Threads and scratch memory for kernels. Declared here, defined outside the sealed files.
#pragma once
#include <cstdint>

namespace aoq {

// Calls body(context, begin, end) over [0, count) on torch's pool; no piece is smaller than grain. Bodies must not
// throw.
void parallel_for(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);
int64_t num_threads();

// Uninitialised, 64-byte aligned; throws std::bad_alloc.
void* allocate(int64_t bytes);
void release(void* memory);

}  // namespace aoq

namespace {

template <class Body>
inline void parallel(int64_t count, int64_t grain, Body& body) {
  aoq::parallel_for(
      count, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<T*>(aoq::allocate(count * static_cast<int64_t>(sizeof(T))))) {}
  ~Scratch() { aoq::release(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

}  // namespace
