// Members in the lanes of a vector: lane l of every vector belongs to member l of the block.
//
// Arithmetic on these types is written as for single numbers and acts on all members at once. No
// operation mixes lanes, so a member's numbers do not depend on its companions.
#pragma once

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

template <class T> struct VectorOf {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T> using V = typename VectorOf<T>::type;

template <class T> constexpr int LANES = VECTOR_BYTES / sizeof(T);

// A complex number per member.
template <class T> struct C {
  V<T> re, im;
};

template <class T> inline C<T> operator+(C<T> a, C<T> b) { return {a.re + b.re, a.im + b.im}; }
template <class T> inline C<T> operator-(C<T> a, C<T> b) { return {a.re - b.re, a.im - b.im}; }
template <class T> inline C<T> operator*(T s, C<T> a) { return {s * a.re, s * a.im}; }

// A complex number that all members share: a symbol or a twiddle factor.
template <class T> struct Shared {
  T re, im;
};

template <class T> inline C<T> operator*(Shared<T> w, C<T> a) {
  return {w.re * a.re - w.im * a.im, w.re * a.im + w.im * a.re};
}

// SIGN i a
template <int SIGN, class T> inline C<T> times_i(C<T> a) {
  if constexpr (SIGN > 0) return {-a.im, a.re};
  return {a.im, -a.re};
}
