// Fourier transforms of many members at once; lengths 2^a 3^b 5^c.
//
//     y_k = sum_j x_j exp(SIGN 2 pi i j k / n),    not normalised
//
// Stockham's autosort algorithm (Van Loan 1992, section 1.7): one pass per factor R of n, each a
// DFT of R numbers and a multiplication with twiddle factors; results come out in order. The
// twiddle factors are shared by all members, which is why nothing here needs a shuffle.
#pragma once

#include <cmath>
#include <vector>

#include "vectors.h"

// In-place DFT of R numbers.
template <int R, int SIGN, class T> inline void dft(C<T>* a) {
  if constexpr (R == 2) {
    C<T> b = a[1];
    a[1] = a[0] - b;
    a[0] = a[0] + b;
  } else if constexpr (R == 3) {
    const T half = T(0.5), sine = T(SIGN * 0.86602540378443864676);  // sin(2 pi / 3)
    C<T> sum = a[1] + a[2], turned = times_i<1>(sine * (a[1] - a[2]));
    C<T> middle = a[0] - half * sum;
    a[0] = a[0] + sum;
    a[1] = middle + turned;
    a[2] = middle - turned;
  } else if constexpr (R == 4) {
    C<T> s02 = a[0] + a[2], d02 = a[0] - a[2];
    C<T> s13 = a[1] + a[3], d13 = times_i<SIGN>(a[1] - a[3]);
    a[0] = s02 + s13;
    a[1] = d02 + d13;
    a[2] = s02 - s13;
    a[3] = d02 - d13;
  } else if constexpr (R == 5) {
    const T c1 = T(0.30901699437494742410), c2 = T(-0.80901699437494742410);
    const T s1 = T(SIGN * 0.95105651629515357212), s2 = T(SIGN * 0.58778525229247312917);
    C<T> p14 = a[1] + a[4], m14 = a[1] - a[4], p23 = a[2] + a[3], m23 = a[2] - a[3];
    C<T> even1 = a[0] + c1 * p14 + c2 * p23, odd1 = times_i<1>(s1 * m14 + s2 * m23);
    C<T> even2 = a[0] + c2 * p14 + c1 * p23, odd2 = times_i<1>(s2 * m14 - s1 * m23);
    a[0] = a[0] + p14 + p23;
    a[1] = even1 + odd1;
    a[2] = even2 + odd2;
    a[3] = even2 - odd2;
    a[4] = even1 - odd1;
  } else {
    static_assert(R == 8);
    const T r = T(0.70710678118654752440);  // cos(pi / 4)
    C<T> even[4] = {a[0], a[2], a[4], a[6]}, odd[4] = {a[1], a[3], a[5], a[7]};
    dft<4, SIGN>(even);
    dft<4, SIGN>(odd);
    odd[1] = r * (odd[1] + times_i<SIGN>(odd[1]));
    odd[2] = times_i<SIGN>(odd[2]);
    odd[3] = r * (times_i<SIGN>(odd[3]) - odd[3]);
    for (int k = 0; k < 4; ++k) {
      a[k] = even[k] + odd[k];
      a[k + 4] = even[k] - odd[k];
    }
  }
}

// One pass: `before` is the product of the factors done, `after` of those to do.
// Twiddle factors w[p][k - 1] = exp(2 pi i p k / (R after)).
template <int R, int SIGN, class T>
void pass(const C<T>* x, C<T>* y, int before, int after, const Shared<T>* w) {
  for (int p = 0; p < after; ++p, w += R - 1) {
    for (int q = 0; q < before; ++q) {
      C<T> a[R];
      for (int k = 0; k < R; ++k) a[k] = x[q + before * (p + after * k)];
      dft<R, SIGN>(a);
      C<T>* to = y + q + before * R * p;
      to[0] = a[0];
      for (int k = 1; k < R; ++k)
        to[before * k] = p ? Shared<T>{w[k - 1].re, SIGN * w[k - 1].im} * a[k] : a[k];
    }
  }
}

template <class T> class Fft {
 public:
  const int n;

  explicit Fft(int n) : n(n), scratch_(2 * n) {
    for (int left = n; left > 1;) {
      int radix = factor(left);
      left /= radix;
      radices_.push_back(radix);
      for (int p = 0; p < left; ++p)
        for (int k = 1; k < radix; ++k) {
          double angle = 2 * M_PI * p * k / (double(radix) * left);
          twiddles_.push_back({T(std::cos(angle)), T(std::sin(angle))});
        }
    }
  }

  // Transform of x into y, which may be x.
  template <int SIGN> void transform(const C<T>* x, C<T>* y) {
    int before = 1, after = n, count = int(radices_.size());
    const Shared<T>* w = twiddles_.data();
    if (count == 0) y[0] = x[0];
    for (int i = 0; i < count; ++i) {
      int radix = radices_[i];
      after /= radix;
      C<T>* to = i + 1 < count ? scratch_.data() + (i % 2) * n : y;
      switch (radix) {
        case 2: pass<2, SIGN>(x, to, before, after, w); break;
        case 3: pass<3, SIGN>(x, to, before, after, w); break;
        case 4: pass<4, SIGN>(x, to, before, after, w); break;
        case 5: pass<5, SIGN>(x, to, before, after, w); break;
        default: pass<8, SIGN>(x, to, before, after, w);
      }
      w += after * (radix - 1);
      before *= radix;
      x = to;
    }
  }

 private:
  // The largest radix that leaves no lone factor 2 where that can be helped: 128 = 8 4 4.
  static int factor(int n) {
    if (n % 5 == 0) return 5;
    if (n % 3 == 0) return 3;
    if (n == 2 || n == 4 || n == 16) return n < 16 ? n : 4;
    return 8;
  }

  std::vector<int> radices_;
  std::vector<Shared<T>> twiddles_;
  std::vector<C<T>> scratch_;  // over-aligned types are allocated aligned since C++17
};

// Two real rows a, b in one complex row a + i b, from their half-spectra.
//
// A half-spectrum has n / 2 + 1 numbers, of which the first `columns` are given, `pitch` apart;
// the others are zero. The imaginary parts of the mean and of Nyquist count for nothing.
template <class T>
inline void join(const C<T>* a, const C<T>* b, int pitch, int columns, int n, C<T>* row) {
  const int inner = columns < n / 2 ? columns : n / 2;
  row[0] = {a[0].re, b[0].re};
  for (int k = 1; k < inner; ++k) {
    C<T> p = a[k * pitch], q = b[k * pitch];
    row[k] = {p.re - q.im, p.im + q.re};      // p + i q
    row[n - k] = {p.re + q.im, q.re - p.im};  // conj p + i conj q
  }
  for (int k = inner; k <= n - inner; ++k) row[k] = C<T>{};
  if (columns > n / 2) row[n / 2] = {a[n / 2 * pitch].re, b[n / 2 * pitch].re};
}

// The inverse of `join`: the first `columns` numbers of both half-spectra, times 2.
template <class T>
inline void split(const C<T>* row, int n, int columns, int pitch, C<T>* a, C<T>* b) {
  a[0] = C<T>{row[0].re + row[0].re, V<T>{}};
  b[0] = C<T>{row[0].im + row[0].im, V<T>{}};
  for (int k = 1; k < columns; ++k) {
    C<T> p = row[k], q = row[n - k];
    a[k * pitch] = {p.re + q.re, p.im - q.im};
    b[k * pitch] = {p.im + q.im, q.re - p.re};
  }
}
