// 64 bytes of numbers at a time: the running maximum and "which lanes exceed t", in the words of each instruction
// set. NaN never enters a maximum and exceeds nothing.
#pragma once

#include <cstdint>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace ellzero {

template <class T> constexpr int lane_count = 64 / sizeof(T);

// maxima[j] = max over r < rows of p[r * lanes + j], from -inf.
template <class T> inline void lane_maxima(const T *p, int rows, T lowest, T *maxima) {
    constexpr int n = lane_count<T>;
    T best[n];
    for (int j = 0; j < n; ++j) best[j] = lowest;
    for (int r = 0; r < rows; ++r, p += n)
        for (int j = 0; j < n; ++j) best[j] = p[j] > best[j] ? p[j] : best[j];
    for (int j = 0; j < n; ++j) maxima[j] = best[j];
}

// Bit j is set where p[j] > t.
template <class T> inline std::uint32_t lanes_above(const T *p, T t) {
    std::uint32_t mask = 0;
    for (int j = 0; j < lane_count<T>; ++j) mask |= static_cast<std::uint32_t>(p[j] > t) << j;
    return mask;
}

#if defined(__AVX512F__)

// max(a, b) answers b when either is NaN, so the number read comes first and the running maximum second.
template <> inline void lane_maxima(const float *p, int rows, float lowest, float *maxima) {
    __m512 best = _mm512_set1_ps(lowest);
    for (int r = 0; r < rows; ++r) best = _mm512_max_ps(_mm512_loadu_ps(p + 16 * r), best);
    _mm512_storeu_ps(maxima, best);
}
template <> inline void lane_maxima(const double *p, int rows, double lowest, double *maxima) {
    __m512d best = _mm512_set1_pd(lowest);
    for (int r = 0; r < rows; ++r) best = _mm512_max_pd(_mm512_loadu_pd(p + 8 * r), best);
    _mm512_storeu_pd(maxima, best);
}
template <> inline std::uint32_t lanes_above(const float *p, float t) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(p), _mm512_set1_ps(t), _CMP_GT_OQ);
}
template <> inline std::uint32_t lanes_above(const double *p, double t) {
    return _mm512_cmp_pd_mask(_mm512_loadu_pd(p), _mm512_set1_pd(t), _CMP_GT_OQ);
}

#elif defined(__AVX2__)

template <> inline void lane_maxima(const float *p, int rows, float lowest, float *maxima) {
    __m256 a = _mm256_set1_ps(lowest), b = a;
    for (int r = 0; r < rows; ++r) {
        a = _mm256_max_ps(_mm256_loadu_ps(p + 16 * r), a);
        b = _mm256_max_ps(_mm256_loadu_ps(p + 16 * r + 8), b);
    }
    _mm256_storeu_ps(maxima, a);
    _mm256_storeu_ps(maxima + 8, b);
}
template <> inline void lane_maxima(const double *p, int rows, double lowest, double *maxima) {
    __m256d a = _mm256_set1_pd(lowest), b = a;
    for (int r = 0; r < rows; ++r) {
        a = _mm256_max_pd(_mm256_loadu_pd(p + 8 * r), a);
        b = _mm256_max_pd(_mm256_loadu_pd(p + 8 * r + 4), b);
    }
    _mm256_storeu_pd(maxima, a);
    _mm256_storeu_pd(maxima + 4, b);
}
template <> inline std::uint32_t lanes_above(const float *p, float t) {
    __m256 bound = _mm256_set1_ps(t);
    std::uint32_t low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p), bound, _CMP_GT_OQ));
    std::uint32_t high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p + 8), bound, _CMP_GT_OQ));
    return low | high << 8;
}
template <> inline std::uint32_t lanes_above(const double *p, double t) {
    __m256d bound = _mm256_set1_pd(t);
    std::uint32_t low = _mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(p), bound, _CMP_GT_OQ));
    std::uint32_t high = _mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(p + 4), bound, _CMP_GT_OQ));
    return low | high << 4;
}

#endif

}  // namespace ellzero
