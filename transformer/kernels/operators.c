/* Operators of translation on a CPU, each in one pass where torch takes several. operators.py calls them and
 * says what they compute; without a compiler torch's operators do the same.
 *
 * A Vector is 8 numbers, whatever the processor has registers for. NaN is never dropped: a largest number
 * passes over it, but then sums are NaN. So the compiler may not assume that there is none.
 */
#include <math.h>
#include <stdint.h>

#define LANES 8
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define EACH(i, n) for (int64_t i = 0; i < (n); i++)
#define VECTOR_OF(x) ((x) - (Vector){0})
#define INLINE static inline __attribute__((always_inline))

INLINE Vector load(const float *x) { return *(const Unaligned *) x; }
INLINE void store(float *x, Vector v) { *(Unaligned *) x = v; }

/* b where neither is larger, as for NaN in either. */
INLINE Vector larger(Vector a, Vector b) {
    Integers chosen = a > b;
    return (Vector) (((Integers) a & chosen) | ((Integers) b & ~chosen));
}

INLINE Vector magnitude(Vector x) { return (Vector) ((Integers) x & INT32_MAX); }

INLINE float largest_of(Vector v) {
    float largest = v[0];
    for (int i = 1; i < LANES; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
}

INLINE float sum_of(Vector v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

/* e^x for x <= 0, to two units in the last place; below -87, where float32 nears its smallest, e^-87.
 *
 * x = n ln 2 + r with |r| <= ln(2) / 2, and e^r by its Taylor polynomial, whose rest is below 2^-25. ln 2 is
 * taken away in two parts, the first of which has few bits, so that n times it is exact.
 */
INLINE Vector exponential(Vector x) {
    const float to_integer = 12582912; /* 1.5 * 2^23: what is added to it is rounded to an integer */
    x = larger(VECTOR_OF(-87.0f), x);
    Vector n = (x * 1.44269504f + to_integer) - to_integer;
    Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector power = r * (1.0f / 5040) + 1.0f / 720;
    power = power * r + 1.0f / 120;
    power = power * r + 1.0f / 24;
    power = power * r + 1.0f / 6;
    power = power * r + 0.5f;
    power = power * r + 1.0f;
    power = power * r + 1.0f;
    return power * (Vector) ((__builtin_convertvector(n, Integers) + 127) << 23);
}

/* x (rows, size) becomes its log-softmax. */
void log_softmax(float *x, int64_t rows, int64_t size) {
    int64_t whole = size - size % (2 * LANES);
    for (; rows > 0; rows--, x += size) {
        Vector one = VECTOR_OF(-INFINITY), other = one;
        for (int64_t i = 0; i < whole; i += 2 * LANES) {
            one = larger(load(x + i), one);
            other = larger(load(x + i + LANES), other);
        }
        float largest = largest_of(larger(one, other)), sum = 0;
        for (int64_t i = whole; i < size; i++) largest = x[i] > largest ? x[i] : largest;
        one = other = VECTOR_OF(0.0f);
        for (int64_t i = 0; i < whole; i += 2 * LANES) {
            one += exponential(load(x + i) - largest);
            other += exponential(load(x + i + LANES) - largest);
        }
        for (int64_t i = whole; i < size; i++) sum += expf(x[i] - largest);
        float rest = logf(sum + sum_of(one + other));
        EACH(i, size) x[i] = (x[i] - largest) - rest; /* their sum would be rounded to largest's last bit */
    }
}

/* Rows of x (rows, size) to whole numbers from -127 to 127, plus zero, and their scales (rows). */
void rounded(const float *x, int64_t rows, int64_t size, int64_t zero, uint8_t *restrict whole,
             float *scales) {
    const float least = 127 * 1.17549435e-38f; /* no scale is below the smallest normal number */
    int64_t vectors = size - size % LANES;
    EACH(row, rows) {
        Vector most = VECTOR_OF(least), sum = VECTOR_OF(0.0f);
        for (int64_t i = 0; i < vectors; i += LANES) {
            Vector size_of = magnitude(load(x + i));
            most = larger(size_of, most);
            sum += size_of;
        }
        float largest = largest_of(most), total = sum_of(sum);
        for (int64_t i = vectors; i < size; i++) {
            float size_of = fabsf(x[i]);
            largest = size_of > largest ? size_of : largest;
            total += size_of;
        }
        float scale = largest / 127, inverse = 1 / scale;
        EACH(i, size) whole[i] = (uint8_t) ((int32_t) rintf(x[i] * inverse) + (int32_t) zero);
        scales[row] = total != total ? total : scale;
        x += size;
        whole += size;
    }
}

/* The count largest of addend + x in each group of width rows, best first, of equal ones the first.
 * Returns 1 where a number is NaN.
 */
int64_t best_sums(const float *x, const double *addends, int64_t groups, int64_t width, int64_t size,
                  int64_t count, double *sums, int64_t *rows, int64_t *columns) {
    enum { BLOCK = 8 * LANES };
    Integers missing = {0};
    int64_t row = 0;
    for (; groups > 0; groups--, sums += count, rows += count, columns += count) {
        double *least = sums + count - 1;
        EACH(i, count) sums[i] = -INFINITY, rows[i] = row, columns[i] = 0;
        for (int64_t last = row + width; row < last; row++, x += size) {
            missing[0] |= addends[row] != addends[row];
            for (int64_t begin = 0; begin < size; begin += BLOCK) {
                int64_t end = begin + BLOCK < size ? begin + BLOCK : size, i = begin;
                Vector most = VECTOR_OF(-INFINITY);
                for (; i + LANES <= end; i += LANES) {
                    Vector some = load(x + i);
                    most = larger(some, most);
                    missing |= some != some;
                }
                float largest = largest_of(most);
                for (; i < end; i++) {
                    largest = x[i] > largest ? x[i] : largest;
                    missing[0] |= x[i] != x[i];
                }
                if (!(addends[row] + largest > *least)) continue;
                for (i = begin; i < end; i++) {
                    double sum = addends[row] + x[i];
                    if (!(sum > *least)) continue;
                    int64_t place = count - 1;
                    for (; place > 0 && sum > sums[place - 1]; place--) {
                        sums[place] = sums[place - 1], rows[place] = rows[place - 1];
                        columns[place] = columns[place - 1];
                    }
                    sums[place] = sum, rows[place] = row, columns[place] = i;
                }
            }
        }
    }
    int64_t found = 0;
    for (int i = 0; i < LANES; i++) found |= missing[i];
    return found != 0;
}

/* Some of the 16 numbers of two vectors. */
#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (Integers){__VA_ARGS__})
#endif

/* The sums of 8 vectors, as a vector: of neighbours, then of these sums' neighbours, then of the halves. */
INLINE Vector sums_of(const Vector *v) {
    Vector two[4], four[2];
    for (int i = 0; i < 4; i++) {
        Vector a = v[2 * i], b = v[2 * i + 1];
        two[i] = PICK(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + PICK(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 2; i++) {
        Vector a = two[2 * i], b = two[2 * i + 1];
        four[i] = PICK(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + PICK(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return PICK(four[0], four[1], 0, 1, 2, 3, 8, 9, 10, 11)
         + PICK(four[0], four[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* softmax(q K^T scale) V of one query and the columns that it sees, `count` of them. */
INLINE void attend_one(const float *query, const float *keys, int64_t key_step, const float *values,
                       int64_t value_step, const int64_t *columns, int64_t count, int width, float scale,
                       float *weights, float *out) {
    Vector most = VECTOR_OF(-INFINITY);
    for (int64_t begin = 0; begin < count; begin += LANES) {
        const float *key[LANES];
        Vector products[LANES];
        for (int i = 0; i < LANES; i++) { /* beyond the last, that one again */
            key[i] = keys + columns[begin + i < count ? begin + i : count - 1] * key_step;
            products[i] = VECTOR_OF(0.0f);
        }
        for (int k = 0; k < width; k += LANES)
            for (int i = 0; i < LANES; i++) products[i] += load(query + k) * load(key[i] + k);
        Vector scores = sums_of(products) * scale;
        most = larger(scores, most);
        store(weights + begin, scores);
    }
    float largest = largest_of(most), total = 0;
    for (int64_t begin = 0; begin < count; begin += LANES)
        store(weights + begin, exponential(load(weights + begin) - largest));
    EACH(i, count) total += weights[i];

    Vector sum[width / LANES];
    EACH(k, width / LANES) sum[k] = VECTOR_OF(0.0f);
    EACH(i, count) {
        const float *value = values + columns[i] * value_step;
        EACH(k, width / LANES) sum[k] += weights[i] * load(value + k * LANES);
    }
    float inverse = count ? 1 / total : 0;
    EACH(k, width / LANES) store(out + k * LANES, sum[k] * inverse);
}

/* Strides, in numbers: of a sentence, a head and a column of it. */
typedef struct { int64_t sentence, head, column; } Strides;

/* Attention of queries (sentences, heads, length, width) over `columns` keys and values each, as (sentences,
 * length, heads, width). mask (sentences, length, columns), where there is one, is 1 for what a query sees.
 * weights has room for `columns` and 8 numbers, seen for length x (1 + columns).
 */
void attend(const float *queries, const Strides *of_queries, const float *keys, const Strides *of_keys,
            const float *values, const Strides *of_values, const uint8_t *mask, const Strides *of_mask,
            int64_t sentences, int64_t heads, int64_t length, int64_t columns, int64_t width, float scale,
            float *weights, int64_t *seen, float *out) {
    EACH(sentence, sentences) {
        EACH(t, length) { /* how many columns it sees, then which */
            const uint8_t *visible = mask ? mask + sentence * of_mask->sentence + t * of_mask->column : 0;
            int64_t *own = seen + t * (1 + columns), count = 0;
            EACH(i, columns) {
                own[1 + count] = i;
                count += mask ? visible[i] : 1;
            }
            own[0] = count;
        }
        EACH(head, heads) {
            const float *query = queries + sentence * of_queries->sentence + head * of_queries->head;
            const float *own_keys = keys + sentence * of_keys->sentence + head * of_keys->head;
            const float *own_values = values + sentence * of_values->sentence + head * of_values->head;
            EACH(t, length) {
                const int64_t *own = seen + t * (1 + columns);
#define ATTEND(width) \
    attend_one(query + t * of_queries->column, own_keys, of_keys->column, own_values, of_values->column, \
               own + 1, own[0], width, scale, weights, out + (t * heads + head) * width)
                if (width == 64) ATTEND(64);
                else if (width == 32) ATTEND(32);
                else ATTEND(width);
            }
        }
        out += length * heads * width;
    }
}
