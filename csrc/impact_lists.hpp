// Inverted lists of 8-bit impacts, made and read. Twin of kernels/impact.py, which describes the format.
//
// Documents stand in windows of 64 blocks. A list is cut at the windows; each cut holds its postings as gaps of one
// byte (a gap of 255 with impact 0 is a step that scores nothing) or, where that is shorter, as places of 12 or 16
// bits, 16 postings at a time: first their places, then their impacts. Where cuts begin is not stored: a list starts
// with their sizes, one byte each in most lists, which a query adds up once, for all its terms at a time.
//
// Whatever bytes a damaged file holds, places are 16 bits wide and the array has 2^16 entries.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "simd.hpp"

namespace ellzero {

constexpr int window_blocks = 64;             // blocks of a window
constexpr int bounds_bytes = 32;              // four bits per block
constexpr int group = 16;                     // postings whose places stand together
constexpr int kth_ranks[4] = {1, 10, 100, 1000};
constexpr int data_padding = 64;              // bytes after the last list, so that whole registers may be read
constexpr std::uint32_t least_bounded = 48;   // stored pairs from which a cut carries bounds

struct ImpactLists {
    std::int64_t terms = 0, documents = 0, windows = 0;
    int shift = 6;                                  // log2 of the block
    const std::uint64_t *starts = nullptr;          // [terms + 1] bytes into data
    const std::uint8_t *form = nullptr;             // [terms] bytes of a cut's size: 1, 2 or 4; 0: a short list
    const std::int32_t *frequency = nullptr;        // [terms] documents of the term
    const std::uint8_t *kth = nullptr;              // [terms, 4] its impacts of ranks 1, 10, 100, 1000; 0: fewer
    const std::uint8_t *data = nullptr;
    const std::uint32_t *rank = nullptr;            // [documents] place of the document's id among all, ascending

    std::int64_t window() const { return std::int64_t(window_blocks) << shift; }
};

// ---------------------------------------------------------------- cuts

// A cut's size is twice its stored pairs (steps included), and 1 more where it holds places instead of gaps.
inline std::uint32_t size_of(std::int64_t pairs, bool wide) { return static_cast<std::uint32_t>(2 * pairs + wide); }

// Bytes of `pairs` places: of 12 bits while a window has no more than 4096 documents.
inline std::int64_t place_bytes(std::int64_t pairs, bool wide, int shift) {
    return !wide ? pairs : shift <= 6 ? (3 * pairs + 1) / 2 : 2 * pairs;
}
inline std::int64_t cut_bytes(std::uint32_t size, int shift) {
    const std::int64_t pairs = size >> 1;
    return (pairs >= least_bounded ? bounds_bytes : 0) + pairs + place_bytes(pairs, size & 1, shift);
}

// Calls use(size) for the cuts of a dense list, window by window.
template <class T, class Use> inline void each_size_of(const std::uint8_t *sizes, std::int64_t windows, Use use) {
    for (std::int64_t w = 0; w < windows; ++w) {
        T size;
        std::memcpy(&size, sizes + w * sizeof(T), sizeof(T));
        use(std::uint32_t(size));
    }
}
template <class Use> inline void each_size(const ImpactLists &x, std::int64_t term, Use use) {
    const std::uint8_t *sizes = x.data + x.starts[term] + x.windows;
    if (x.form[term] == 1) each_size_of<std::uint8_t>(sizes, x.windows, use);
    else if (x.form[term] == 2) each_size_of<std::uint16_t>(sizes, x.windows, use);
    else each_size_of<std::uint32_t>(sizes, x.windows, use);
}

// ---------------------------------------------------------------- making lists

struct EncodedLists {
    std::vector<std::uint8_t> data, kth, form;
    std::vector<std::uint64_t> starts;
    std::vector<std::int32_t> frequency;
};

class ListEncoder {
  public:
    ListEncoder(std::int64_t documents, int shift)
        : shift(shift), window(std::int64_t(window_blocks) << shift), windows((documents + window - 1) / window) {}

    // ptr[terms + 1], documents ascending within a term, impacts 1 to 255.
    EncodedLists operator()(const std::int64_t *ptr, const std::uint32_t *docs, const std::uint8_t *impacts,
                            std::int64_t terms) {
        EncodedLists out;
        out.starts.assign(1, 0);
        out.data.reserve(ptr[terms] * 5 / 2 + 4 * terms + data_padding);
        for (std::int64_t t = 0; t < terms; ++t) {
            const std::int64_t count = ptr[t + 1] - ptr[t];
            statistics(impacts + ptr[t], count, out);
            out.frequency.push_back(static_cast<std::int32_t>(count));
            out.form.push_back(0);
            if (3 * count > 2 * windows) out.form.back() = encode_dense(docs + ptr[t], impacts + ptr[t], count);
            if (out.form.back()) {
                append(out.data, largest.data(), windows);
                for (std::uint32_t size : sizes) append(out.data, reinterpret_cast<std::uint8_t *>(&size), out.form.back());
                append(out.data, bytes.data(), bytes.size());
            } else {
                append(out.data, docs + ptr[t], count);
                append(out.data, impacts + ptr[t], count);
            }
            out.starts.push_back(out.data.size());
        }
        return out;
    }

  private:
    const int shift;
    const std::int64_t window, windows;
    std::vector<std::uint8_t> bytes, gaps, gains, largest;
    std::vector<std::uint32_t> sizes;
    std::uint8_t top = 0;

    template <class T> static void append(std::vector<std::uint8_t> &to, const T *values, std::int64_t count) {
        const auto *raw = reinterpret_cast<const std::uint8_t *>(values);
        to.insert(to.end(), raw, raw + count * sizeof(T));
    }

    void statistics(const std::uint8_t *impacts, std::int64_t count, EncodedLists &out) {
        std::int64_t of[256] = {};
        for (std::int64_t i = 0; i < count; ++i) ++of[impacts[i]];
        std::int64_t above = 0;
        int value = 256;
        top = 0;
        for (int rank : kth_ranks) {
            while (above < rank && value > 0) above += of[--value];
            const std::uint8_t found = above >= rank ? static_cast<std::uint8_t>(value) : 0;
            out.kth.push_back(found);
            if (rank == 1) top = found;
        }
    }

    // The cuts of one list and the bytes that their sizes take; 0 if a short list is shorter.
    std::uint8_t encode_dense(const std::uint32_t *docs, const std::uint8_t *impacts, std::int64_t count) {
        bytes.clear(), sizes.clear(), largest.clear();
        std::int64_t at = 0;
        for (std::int64_t w = 0; w < windows; ++w) {
            std::int64_t end = at;
            while (end < count && docs[end] < (w + 1) * window) ++end;
            largest.push_back(end > at ? *std::max_element(impacts + at, impacts + end) : 0);
            cut(docs + at, impacts + at, end - at, static_cast<std::uint32_t>(w * window));
            at = end;
        }
        const std::uint32_t most = *std::max_element(sizes.begin(), sizes.end());
        const std::uint8_t form = most < 1u << 8 ? 1 : most < 1u << 16 ? 2 : 4;
        const std::int64_t size = std::int64_t(bytes.size()) + windows * (1 + form);
        return size < 5 * count && size < std::int64_t(1) << 32 ? form : 0;
    }

    void cut(const std::uint32_t *docs, const std::uint8_t *impacts, std::int64_t count, std::uint32_t first) {
        gaps.clear(), gains.clear();
        std::uint32_t before = first;
        for (std::int64_t i = 0; i < count; ++i) {
            std::uint32_t gap = docs[i] - before;
            for (; gap > 255; gap -= 255) gaps.push_back(255), gains.push_back(0);
            gaps.push_back(static_cast<std::uint8_t>(gap)), gains.push_back(impacts[i]);
            before = docs[i];
        }
        const std::int64_t steps = gaps.size();
        const bool wide = cut_bytes(size_of(count, true), shift) < cut_bytes(size_of(steps, false), shift);
        const std::int64_t pairs = wide ? count : steps;
        sizes.push_back(size_of(pairs, wide));
        if (pairs >= least_bounded) bounds(docs, impacts, count, first);
        for (std::int64_t i = 0; i < pairs; i += group) {
            const std::int64_t some = std::min<std::int64_t>(group, pairs - i);
            if (wide) places(docs + i, some, first);
            else append(bytes, gaps.data() + i, some);
            append(bytes, (wide ? impacts : gains.data()) + i, some);
        }
    }

    void places(const std::uint32_t *docs, std::int64_t count, std::uint32_t first) {
        for (std::int64_t i = 0; i < count; ++i) {
            const std::uint32_t place = docs[i] - first;
            if (shift <= 6 && i & 1) {
                bytes.back() |= static_cast<std::uint8_t>(place << 4);
                bytes.push_back(static_cast<std::uint8_t>(place >> 4));
            } else {
                bytes.push_back(static_cast<std::uint8_t>(place));
                bytes.push_back(static_cast<std::uint8_t>(place >> 8));
            }
        }
    }

    // Block j of the window: low half of byte j for j < 32, else high half of byte j - 32; in steps of top / 15, up.
    void bounds(const std::uint32_t *docs, const std::uint8_t *impacts, std::int64_t count, std::uint32_t first) {
        std::uint8_t best[window_blocks] = {};
        for (std::int64_t i = 0; i < count; ++i) {
            std::uint8_t &block = best[(docs[i] - first) >> shift];
            block = std::max(block, impacts[i]);
        }
        for (int j = 0; j < bounds_bytes; ++j)
            bytes.push_back(static_cast<std::uint8_t>(level(best[j]) | level(best[j + bounds_bytes]) << 4));
    }

    int level(int impact) const { return (15 * impact + top - 1) / top; }
};

// ---------------------------------------------------------------- reading lists

// Where the postings of one cut lie: `count` pairs (steps included), either gaps or places.
struct Cut {
    const std::uint8_t *bounds;  // null: none
    const std::uint8_t *pairs;
    std::int64_t count;
    bool wide;
    int shift;
};

inline Cut find_cut(const std::uint8_t *at, std::uint32_t size, int shift) {
    const std::uint32_t count = size >> 1;
    const bool bounded = count >= least_bounded;
    return {bounded ? at : nullptr, bounded ? at + bounds_bytes : at, count, (size & 1) != 0, shift};
}

// Calls use(place, impact) for every posting of a cut, and for its steps with impact 0.
template <class Use> inline void each_posting(const Cut &cut, Use use) {
    std::uint16_t place = 0;
    const std::uint8_t *at = cut.pairs;
    for (std::int64_t left = cut.count; left > 0; left -= group) {
        const int some = static_cast<int>(std::min<std::int64_t>(group, left));
        const std::uint8_t *impacts = at + place_bytes(some, cut.wide, cut.shift);
        for (int i = 0; i < some; ++i) {
            if (!cut.wide)
                place = static_cast<std::uint16_t>(place + at[i]);
            else if (cut.shift > 6)
                place = static_cast<std::uint16_t>(at[2 * i] | at[2 * i + 1] << 8);
            else if (i & 1)
                place = static_cast<std::uint16_t>(at[3 * i / 2] >> 4 | at[3 * i / 2 + 1] << 4);
            else
                place = static_cast<std::uint16_t>(at[3 * i / 2] | (at[3 * i / 2 + 1] & 15) << 8);
            use(place, impacts[i]);
        }
        at = impacts + some;
    }
}

#if defined(__AVX2__)
// 16 gaps -> the places they lead to from `last`, which then repeats the sixteenth.
inline __m256i step_places(__m128i gaps, __m256i &last) {
    __m256i at = _mm256_cvtepu8_epi16(gaps);
    at = _mm256_add_epi16(at, _mm256_slli_si256(at, 2));
    at = _mm256_add_epi16(at, _mm256_slli_si256(at, 4));
    at = _mm256_add_epi16(at, _mm256_slli_si256(at, 8));
    const __m256i top = _mm256_set1_epi16(0x0f0e), half = _mm256_permute2x128_si256(at, at, 0x08);  // low half, moved up
    at = _mm256_add_epi16(_mm256_add_epi16(at, _mm256_shuffle_epi8(half, top)), last);
    last = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(at, 0xff), top);
    return at;
}
#endif

#if defined(__AVX2__)
enum class Form { gaps, twelve, sixteen };

template <Form form> inline __m256i load_places(const std::uint8_t *at, __m256i &last) {
    if constexpr (form == Form::gaps) return step_places(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at)), last);
    if constexpr (form == Form::sixteen) return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
    const __m256i half = _mm256_setr_m128i(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at)),
                                           _mm_loadu_si128(reinterpret_cast<const __m128i *>(at + 12)));
    const __m256i two = _mm256_shuffle_epi8(half, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                                      0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11)));
    return _mm256_blend_epi16(_mm256_and_si256(two, _mm256_set1_epi16(0xfff)), _mm256_srli_epi16(two, 4), 0xaa);
}

inline void add_group(__m256i at, __m128i impact, __m256i by, std::int32_t *scores) {
    alignas(32) std::int32_t gain[group];
    const __m256i low = _mm256_madd_epi16(_mm256_cvtepu8_epi32(impact), by);
    const __m256i high = _mm256_madd_epi16(_mm256_cvtepu8_epi32(_mm_srli_si128(impact, 8)), by);
    _mm256_store_si256(reinterpret_cast<__m256i *>(gain), low);
    _mm256_store_si256(reinterpret_cast<__m256i *>(gain + 8), high);
    // Places leave the register in words of four: fewer loads than one for each.
    const __m128i lower = _mm256_castsi256_si128(at), upper = _mm256_extracti128_si256(at, 1);
    const std::int64_t words[4] = {_mm_cvtsi128_si64(lower), _mm_extract_epi64(lower, 1), _mm_cvtsi128_si64(upper),
                                   _mm_extract_epi64(upper, 1)};
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
        const std::uint64_t four = static_cast<std::uint64_t>(words[q]);
        scores[four & 0xffff] += gain[4 * q];
        scores[four >> 16 & 0xffff] += gain[4 * q + 1];
        scores[four >> 32 & 0xffff] += gain[4 * q + 2];
        scores[four >> 48] += gain[4 * q + 3];
    }
}

// A whole register is taken at the end too: what lies behind the cut adds nothing to the first 16 places, which are
// different ones, so that no addition waits for another.
template <Form form> inline void add_groups(const Cut &cut, std::int32_t weight, std::int32_t *scores) {
    constexpr int places = form == Form::gaps ? group : form == Form::twelve ? group * 3 / 2 : 2 * group;
    const __m256i by = _mm256_set1_epi32(weight);
    __m256i last = _mm256_setzero_si256();
    const std::uint8_t *at = cut.pairs;
    std::int64_t left = cut.count;
    for (; left >= group; left -= group, at += places + group)
        add_group(load_places<form>(at, last), _mm_loadu_si128(reinterpret_cast<const __m128i *>(at + places)), by, scores);
    if (!left) return;
    const __m256i lane = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m256i within = _mm256_cmpgt_epi16(_mm256_set1_epi16(static_cast<short>(left)), lane);
    const __m256i bytes = _mm256_packs_epi16(within, within);
    const std::int64_t used = form == Form::gaps ? left : form == Form::twelve ? (3 * left + 1) / 2 : 2 * left;
    const __m128i impact = _mm_and_si128(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at + used)),
                                         _mm_unpacklo_epi64(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
    add_group(_mm256_blendv_epi8(lane, load_places<form>(at, last), within), impact, by, scores);
}
#endif

// scores[place] += weight * impact over a cut.
inline void add_cut(const Cut &cut, std::int32_t weight, std::int32_t *scores) {
#if defined(__AVX2__)
    if (!cut.wide) add_groups<Form::gaps>(cut, weight, scores);
    else if (cut.shift <= 6) add_groups<Form::twelve>(cut, weight, scores);
    else add_groups<Form::sixteen>(cut, weight, scores);
#else
    each_posting(cut, [&](std::uint16_t place, std::uint8_t impact) { scores[place] += weight * impact; });
#endif
}

// One list of a query: a dense one with its cuts, or a short one with whole document numbers.
struct QueryTerm {
    std::int32_t weight;
    std::int64_t count;
    const std::uint8_t *list;         // of a dense one: its cuts
    const std::uint8_t *largest;      // [windows] the cuts' largest impacts; null: a short list
    std::int64_t term;
    const std::uint8_t *kth;          // its impacts of ranks 1, 10, 100, 1000
    float step;                       // scaled weight, see WindowBounds
    alignas(16) std::uint8_t low[16], high[16];  // the scaled values of the 16 levels, by bytes

    std::uint32_t document(std::int64_t i) const {
        std::uint32_t found;
        std::memcpy(&found, list + 4 * i, 4);
        return found;
    }
    std::uint8_t impact(std::int64_t i) const { return list[4 * count + i]; }

    // The first of a short list's postings at `document` or after.
    std::int64_t lower_bound(std::uint64_t from) const {
        std::int64_t low = 0, high = count;
        while (low < high) {
            const std::int64_t middle = (low + high) / 2;
            if (document(middle) < from) low = middle + 1;
            else high = middle;
        }
        return low;
    }
};

inline std::vector<QueryTerm> query_terms(const ImpactLists &x, const std::int32_t *terms, const std::int32_t *weights,
                                          std::int64_t count) {
    std::vector<QueryTerm> found;
    found.reserve(count);
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t t = terms[i];
        if (weights[i] <= 0 || x.frequency[t] == 0) continue;
        QueryTerm q{};
        q.weight = weights[i];
        q.count = x.frequency[t];
        q.list = x.data + x.starts[t];
        q.kth = x.kth + 4 * t;
        q.term = t;
        if (x.form[t]) {
            q.largest = q.list;
            q.list += x.windows * (1 + x.form[t]);
        }
        found.push_back(q);
    }
    return found;
}

}  // namespace ellzero
