// Standard normals that are a function of their name and of nothing else.
//
// Philox 4x32-10 (Salmon et al. 2011) with key = seed and counter = (group, step, stream, member)
// gives four words, and two Box-Muller pairs give the normals 4 group ... 4 group + 3 of that step.
// Written for one member; the compiler runs the loop over members in the lanes.
#pragma once

#include <cmath>
#include <cstdint>

#include "vectors.h"

struct Key {
  uint64_t seed;
  uint32_t stream;
};

inline void philox(uint32_t (&c)[4], uint64_t seed) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = uint64_t(0xD2511F53u) * c[0], p1 = uint64_t(0xCD9E8D57u) * c[2];
    uint32_t high0 = uint32_t(p0 >> 32), high1 = uint32_t(p1 >> 32);
    c[0] = high1 ^ c[1] ^ k0;
    c[1] = uint32_t(p1);
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// sin and cos of |x| <= pi / 4, by their series.
template <class T> inline T sine(T x) {
  T z = x * x;
  T s = T(1. / 362880);
  if constexpr (sizeof(T) == 8)
    s = s + z * (T(-1. / 39916800) + z * (T(1. / 6227020800) - z * T(1. / 1307674368000)));
  return x + x * z * (T(-1. / 6) + z * (T(1. / 120) + z * (T(-1. / 5040) + z * s)));
}

template <class T> inline T cosine(T x) {
  T z = x * x;
  T s = T(1. / 40320);
  if constexpr (sizeof(T) == 8)
    s = s + z * (T(-1. / 3628800) + z * (T(1. / 479001600) +
             z * (T(-1. / 87178291200) + z * T(1. / 20922789888000))));
  return 1 - z / 2 + z * z * (T(1. / 24) + z * (T(-1. / 720) + z * s));
}

// -2 log u for u in (0, 1], from u = m 2^e and log m = 2 artanh((m - 1) / (m + 1)).
inline float minus_2_log(float u) {
  int32_t bits;
  __builtin_memcpy(&bits, &u, 4);
  int32_t e = (bits - 0x3F3504F3) >> 23;  // m in [1 / sqrt 2, sqrt 2)
  bits -= e << 23;
  float m;
  __builtin_memcpy(&m, &bits, 4);
  float s = (m - 1) / (m + 1), z = s * s;
  float log_m = s * (2 + z * (2.f / 3 + z * (2.f / 5 + z * (2.f / 7 + z * (2.f / 9)))));
  return -2 * (float(e) * 0.69314718055994530942f + log_m);
}

inline double minus_2_log(double u) {
  int64_t bits;
  __builtin_memcpy(&bits, &u, 8);
  int64_t e = ((bits - 0x3FE6A09E667F3BCD) >> 52);
  bits -= e << 52;
  double m;
  __builtin_memcpy(&m, &bits, 8);
  double s = (m - 1) / (m + 1), z = s * s, series = 2. / 23;
  for (int odd = 21; odd >= 3; odd -= 2) series = series * z + 2. / odd;
  return -2 * (double(int32_t(e)) * 0.69314718055994530942 + s * (2 + z * series));
}

// From sin x and cos x to those of x + quarter pi / 2.
template <class T> inline void turn(T s, T c, uint32_t quarter, T& sine, T& cosine) {
  T across = quarter & 1 ? c : s, along = quarter & 1 ? s : c;
  sine = quarter & 2 ? -across : across;
  cosine = (quarter + 1) & 2 ? -along : along;
}

// Two normals from two words: radius from the first, angle from the second.
template <class T> inline void box_muller(uint32_t w, uint32_t v, T& first, T& second) {
  T u = (T(int32_t(w >> 1)) + T(0.5)) * T(1. / 2147483648);
  T radius = __builtin_sqrt(minus_2_log(u));
  if constexpr (sizeof(T) == 4) radius = __builtin_sqrtf(minus_2_log(u));
  uint32_t quarter = (v + 0x20000000u) >> 30;  // the nearest multiple of pi / 2
  T x = T(int32_t(v - (quarter << 30))) * T(2 * M_PI / 4294967296.);
  turn(radius * sine(x), radius * cosine(x), quarter, second, first);
}

// Normals 4 group ... 4 group + 3 of a step for the members of a block: out[i][lane].
template <class T>
inline void four_normals(Key key, const uint32_t* members, uint32_t step, uint32_t group, V<T>* out) {
  T* to = reinterpret_cast<T*>(out);
  constexpr int L = LANES<T>;
  for (int l = 0; l < L; ++l) {
    uint32_t c[4] = {group, step, key.stream, members[l]};
    philox(c, key.seed);
    box_muller<T>(c[0], c[1], to[l], to[L + l]);
    box_muller<T>(c[2], c[3], to[2 * L + l], to[3 * L + l]);
  }
}

// exp(i phase) of a block.
template <class T> inline C<T> on_circle(V<T> phase) {
  C<T> wave;
  const T* from = reinterpret_cast<const T*>(&phase);
  T *re = reinterpret_cast<T*>(&wave.re), *im = reinterpret_cast<T*>(&wave.im);
  for (int l = 0; l < LANES<T>; ++l) {
    T quarters = from[l] * T(2 / M_PI);
    int32_t quarter = int32_t(quarters + (quarters < 0 ? T(-0.5) : T(0.5)));
    // pi / 2 in two parts, so that the difference keeps its digits.
    const T high = T(1.5703125), low = T(M_PI / 2 - 1.5703125);
    T x = (from[l] - T(quarter) * high) - T(quarter) * low;
    turn(sine(x), cosine(x), uint32_t(quarter), im[l], re[l]);
  }
  return wave;
}
