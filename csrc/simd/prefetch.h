// Fetching lines before they are read, into L1 or only into L2. In assembly: GCC 12 takes a function that does nothing
// but _mm_prefetch for one without effect and drops calls that it does not inline. Sealed: x86 files only.
#pragma once

namespace {

inline void prefetch(const void* data) { asm volatile("prefetcht0 %0" ::"m"(*static_cast<const char*>(data))); }
inline void prefetch_far(const void* data) { asm volatile("prefetcht1 %0" ::"m"(*static_cast<const char*>(data))); }

}  // namespace
