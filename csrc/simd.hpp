// One vector register in the words of each instruction set, so that a kernel is written once.
//
// Vec<T>::n lanes; `partial` loads and stores touch only the first `count` lanes and read the others as zero.
// fma rounds once where the instruction set has it (avx2, avx512), twice on the baseline.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace ellzero {

template <class T> struct Vec;

#if defined(__AVX512F__)

template <> struct Vec<float> {
    static constexpr int n = 16;
    __m512 v;
    static Vec zero() { return {_mm512_setzero_ps()}; }
    static Vec all(float a) { return {_mm512_set1_ps(a)}; }
    static Vec load(const float *p) { return {_mm512_loadu_ps(p)}; }
    static Vec partial(const float *p, int count) { return {_mm512_maskz_loadu_ps(mask(count), p)}; }
    void store(float *p) const { _mm512_storeu_ps(p, v); }
    void store_partial(float *p, int count) const { _mm512_mask_storeu_ps(p, mask(count), v); }
    Vec first(int count) const { return {_mm512_maskz_mov_ps(mask(count), v)}; }  // zero from there on
    float sum() const { return _mm512_reduce_add_ps(v); }
    static __mmask16 mask(int count) { return static_cast<__mmask16>((1u << count) - 1); }
};
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }

template <> struct Vec<double> {
    static constexpr int n = 8;
    __m512d v;
    static Vec zero() { return {_mm512_setzero_pd()}; }
    static Vec all(double a) { return {_mm512_set1_pd(a)}; }
    static Vec load(const double *p) { return {_mm512_loadu_pd(p)}; }
    static Vec partial(const double *p, int count) { return {_mm512_maskz_loadu_pd(mask(count), p)}; }
    void store(double *p) const { _mm512_storeu_pd(p, v); }
    void store_partial(double *p, int count) const { _mm512_mask_storeu_pd(p, mask(count), v); }
    double sum() const { return _mm512_reduce_add_pd(v); }
    static __mmask8 mask(int count) { return static_cast<__mmask8>((1u << count) - 1); }
};
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm512_add_pd(a.v, b.v)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm512_mul_pd(a.v, b.v)}; }

#elif defined(__AVX2__)

inline __m256i first_lanes(int count) {  // of eight 32-bit lanes
    alignas(32) static constexpr std::int32_t table[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(table + 8 - count));
}

template <> struct Vec<float> {
    static constexpr int n = 8;
    __m256 v;
    static Vec zero() { return {_mm256_setzero_ps()}; }
    static Vec all(float a) { return {_mm256_set1_ps(a)}; }
    static Vec load(const float *p) { return {_mm256_loadu_ps(p)}; }
    static Vec partial(const float *p, int count) { return {_mm256_maskload_ps(p, first_lanes(count))}; }
    void store(float *p) const { _mm256_storeu_ps(p, v); }
    void store_partial(float *p, int count) const { _mm256_maskstore_ps(p, first_lanes(count), v); }
    Vec first(int count) const { return {_mm256_and_ps(v, _mm256_castsi256_ps(first_lanes(count)))}; }  // then zero
    float sum() const {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
};
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm256_mul_ps(a.v, b.v)}; }

template <> struct Vec<double> {
    static constexpr int n = 4;
    __m256d v;
    static Vec zero() { return {_mm256_setzero_pd()}; }
    static Vec all(double a) { return {_mm256_set1_pd(a)}; }
    static Vec load(const double *p) { return {_mm256_loadu_pd(p)}; }
    static Vec partial(const double *p, int count) { return {_mm256_maskload_pd(p, first_lanes(2 * count))}; }
    void store(double *p) const { _mm256_storeu_pd(p, v); }
    void store_partial(double *p, int count) const { _mm256_maskstore_pd(p, first_lanes(2 * count), v); }
    double sum() const {
        __m128d half = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
        return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
    }
};
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm256_add_pd(a.v, b.v)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm256_mul_pd(a.v, b.v)}; }

#else

// 16 bytes, which the compiler lowers to the machine's own registers (SSE2, NEON) or to scalars.
template <class T> struct Vec {
    static constexpr int n = 16 / sizeof(T);
    typedef T Raw __attribute__((vector_size(16)));
    Raw v;
    static Vec zero() { return {Raw{}}; }
    static Vec all(T a) { return {a - Raw{}}; }
    static Vec load(const T *p) { return partial(p, n); }
    static Vec partial(const T *p, int count) {
        Raw r{};
        std::memcpy(&r, p, sizeof(T) * count);
        return {r};
    }
    void store(T *p) const { std::memcpy(p, &v, sizeof v); }
    void store_partial(T *p, int count) const { std::memcpy(p, &v, sizeof(T) * count); }
    T sum() const {
        T total = v[0];
        for (int i = 1; i < n; ++i) total += v[i];
        return total;
    }
};
template <class T> inline Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) { return {a.v * b.v + c.v}; }
template <class T> inline Vec<T> operator+(Vec<T> a, Vec<T> b) { return {a.v + b.v}; }
template <class T> inline Vec<T> operator*(Vec<T> a, Vec<T> b) { return {a.v * b.v}; }

#endif

// a b + c for one number, rounded as the lanes of `fma` are.
template <class T> inline T fma_one(T a, T b, T c) {
#if defined(__FMA__) || defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return __builtin_fmaf(a, b, c);
    else
        return __builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}

// How many vectors `lane_sums` takes together.
#if defined(__AVX512F__)
template <class T> constexpr int summed = Vec<T>::n;
#else
template <class T> constexpr int summed = 4;
#endif

// sums[i] = the sum of the lanes of v[i], for `summed` vectors.
template <class T> inline void lane_sums(const Vec<T> *v, T *sums) {
    for (int i = 0; i < summed<T>; ++i) sums[i] = v[i].sum();
}

#if defined(__AVX512F__)
// A tree of pairwise interleavings: three instructions a vector instead of seven.
template <> inline void lane_sums(const Vec<float> *v, float *sums) {
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; ++i)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i].v, v[2 * i + 1].v), _mm512_unpackhi_ps(v[2 * i].v, v[2 * i + 1].v));
    for (int i = 0; i < 4; ++i) {
        __m512d low = _mm512_castps_pd(a[2 * i]), high = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    }
    for (int i = 0; i < 2; ++i)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88), _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
    __m512 d = _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
    _mm512_storeu_ps(sums, d);
}
#elif defined(__AVX2__)
// Trees of pairwise additions of neighbours.
template <> inline void lane_sums(const Vec<float> *v, float *sums) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0].v, v[1].v), _mm256_hadd_ps(v[2].v, v[3].v));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}
template <> inline void lane_sums(const Vec<double> *v, double *sums) {
    const __m256d a = _mm256_hadd_pd(v[0].v, v[1].v), b = _mm256_hadd_pd(v[2].v, v[3].v);
    _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31)));
}
#endif

}  // namespace ellzero
