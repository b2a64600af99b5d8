// What Python calls: one object per equation, and per call one block of members.
//
// One source for three builds: avx512.cpp, avx2.cpp and plain.cpp differ in their compiler flags.
// Arrays are aligned to VECTOR_BYTES. State: u[mode][re, im][lane], phases[number][lane].
// Steps are counted from the start of the spin-up.

#pragma once

#include "navier_stokes.h"
#include "spde.h"

#if defined(__SSE__)
#include <xmmintrin.h>
// Numbers too small to be normal count as zero: some processors take a hundred times as long for
// them, and modes that only decay arrive there.
class FlushToZero {
 public:
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};
#else
struct FlushToZero {
  ~FlushToZero() {}
};
#endif

extern "C" {

int vector_bytes() { return VECTOR_BYTES; }

#define EXPORT(T, TYPE)                                                                          \
  void* spde_new_##TYPE(int nx, int ny, double dt, int scheme, int refine, const T* linear,      \
                        const T* noise, const T* reaction) {                                     \
    return new Spde<T>(nx, ny, dt, Scheme(scheme), refine,                                       \
                       reinterpret_cast<const Shared<T>*>(linear), noise, reaction);             \
  }                                                                                              \
  void spde_free_##TYPE(void* self) { delete static_cast<Spde<T>*>(self); }                      \
  void spde_advance_##TYPE(void* self, T* u, uint64_t seed, uint32_t stream,                     \
                           const uint32_t* members, uint32_t first, uint32_t steps) {            \
    FlushToZero here;                                                                            \
    static_cast<Spde<T>*>(self)->advance(reinterpret_cast<C<T>*>(u), {seed, stream}, members,    \
                                         first, steps);                                          \
  }                                                                                              \
  void spde_observe_##TYPE(void* self, const T* u, T* field) {                                   \
    static_cast<Spde<T>*>(self)->observe(reinterpret_cast<const C<T>*>(u),                       \
                                         reinterpret_cast<V<T>*>(field));                        \
  }                                                                                              \
  void* navier_stokes_new_##TYPE(int n, double dt, int truncation, const T* linear,              \
                                 const T* inverse, const T* dx, const T* dy, int phases,         \
                                 int forced, const int32_t* list, double amplitude,              \
                                 double mean_forcing) {                                          \
    return new NavierStokes<T>(n, dt, truncation, reinterpret_cast<const Shared<T>*>(linear),    \
                               inverse, dx, dy, phases, forced,                                  \
                               reinterpret_cast<const Forced*>(list), amplitude, mean_forcing);  \
  }                                                                                              \
  void navier_stokes_free_##TYPE(void* self) { delete static_cast<NavierStokes<T>*>(self); }     \
  void navier_stokes_advance_##TYPE(void* self, T* zeta, T* phases, uint64_t seed,               \
                                    uint32_t stream, const uint32_t* members, uint32_t first,    \
                                    uint32_t steps) {                                            \
    FlushToZero here;                                                                            \
    static_cast<NavierStokes<T>*>(self)->advance(reinterpret_cast<C<T>*>(zeta),                  \
                                                 reinterpret_cast<V<T>*>(phases),                \
                                                 {seed, stream}, members, first, steps);         \
  }                                                                                              \
  void navier_stokes_observe_##TYPE(void* self, const T* zeta, T* field) {                       \
    static_cast<NavierStokes<T>*>(self)->observe(reinterpret_cast<const C<T>*>(zeta),            \
                                                 reinterpret_cast<V<T>*>(field));                \
  }                                                                                              \
  /* Transform of n numbers, sign +-1, `count` times: x -> y. */                                 \
  void transform_##TYPE(int n, int sign, const T* x, T* y, int count) {                          \
    Fft<T> fft(n);                                                                               \
    const C<T>* from = reinterpret_cast<const C<T>*>(x);                                         \
    C<T>* to = reinterpret_cast<C<T>*>(y);                                                       \
    for (int i = 0; i < count; ++i)                                                              \
      sign > 0 ? fft.template transform<1>(from, to) : fft.template transform<-1>(from, to);     \
  }                                                                                              \
  /* The first 4 groups normals of some steps, normals[step][number][lane]. */                    \
  void normals_##TYPE(uint64_t seed, uint32_t stream, const uint32_t* members, uint32_t first,   \
                      int steps, int groups, T* normals) {                                       \
    V<T>* to = reinterpret_cast<V<T>*>(normals);                                                 \
    for (int step = 0; step < steps; ++step)                                                     \
      for (int group = 0; group < groups; ++group, to += 4)                                      \
        four_normals<T>({seed, stream}, members, first + step, group, to);                       \
  }

EXPORT(float, f32)
EXPORT(double, f64)
}
