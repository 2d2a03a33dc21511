#include "_deflate.h"

#include <stdlib.h>
#include <string.h>

/* How it works: a message is copied behind the history in the window, cut into sequences (a run of literals,
 * then a match) by looking up four-byte hashes, and the sequences are written as one DEFLATE block, stored, with
 * the fixed codes, or with codes of its own. Literals are read from the caller's message, so a block may be
 * longer than the window. */

#define MIN_MATCH 4          /* what the hash finds; splitting a long match may leave one of 3 */
#define MAX_MATCH 258
#define MAX_SEQUENCES 8192   /* in one block */
#define LITERALS 286
#define DISTANCES 30
#define CODE_LENGTHS 19
#define END_OF_BLOCK 256
#define WORTH_COUNTING 96    /* symbols; below this the header of a dynamic block rarely pays */
#define LONG_MESSAGE 4096    /* bytes; see `levels` */
#define LONG_STEP 16

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

struct fabric_deflate {
    uint32_t window_size;
    uint32_t end;        /* window[1 .. end) is filled */
    uint32_t low;        /* nothing below may be referred to: not there, or forgotten */
    int hash_shift;
    int depth;           /* candidates tried for one position */
    uint32_t lazy;       /* a match shorter than this is given up if the next position has a longer one */
    uint32_t count_from; /* blocks of fewer symbols get the fixed Huffman codes without a count */
    uint32_t step;       /* within a match, every step-th position goes into the tables */
    uint16_t *head;      /* hash -> newest position, 0 for none; stale entries are harmless, see find() */
    uint16_t *chain;     /* position & chain_mask -> the one before with the same hash; NULL when depth is 1 */
    uint32_t chain_mask; /* half a window: the older half is reached through `head` alone, which costs 0.2 % */
    uint8_t *window;     /* 2 * window_size bytes */
};

typedef struct {
    uint32_t literals;   /* that come before the match */
    uint16_t length;
    uint16_t distance;
} sequence;

typedef struct {
    uint8_t *out;
    uint64_t bits;
    unsigned count;      /* bits waiting, below 8 between writes */
} bit_writer;

typedef struct {
    uint16_t code;
    uint8_t length;
} symbol;

/* One call's working memory. Shared by all encoders: it holds nothing between calls. */
static sequence sequences[MAX_SEQUENCES];

static symbol fixed_literals[288];
static symbol fixed_distances[DISTANCES];
static uint8_t length_code[MAX_MATCH + 1];      /* 3..258 -> 0..28 */
static uint16_t length_base[29];
static uint8_t length_extra[29];

/* Memory, unaligned */

static ALWAYS_INLINE uint32_t load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static ALWAYS_INLINE uint64_t load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static ALWAYS_INLINE void store64_little(uint8_t *p, uint64_t v)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    memcpy(p, &v, 8);
}

static ALWAYS_INLINE unsigned equal_bytes(uint64_t difference)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (unsigned)__builtin_clzll(difference) >> 3;
#else
    return (unsigned)__builtin_ctzll(difference) >> 3;
#endif
}

/* Bits */

/* At most 56 bits may be put between two flushes. */
static ALWAYS_INLINE void put(bit_writer *w, uint64_t bits, unsigned count)
{
    w->bits |= bits << w->count;
    w->count += count;
}

/* Writes 8 bytes, of which only whole filled ones count: `out` needs 8 bytes of slack. */
static ALWAYS_INLINE void flush(bit_writer *w)
{
    store64_little(w->out, w->bits);
    w->out += w->count >> 3;
    w->bits >>= w->count & ~7u;
    w->count &= 7;
}

static ALWAYS_INLINE void align(bit_writer *w)
{
    w->count = (w->count + 7) & ~7u;
    flush(w);
}

/* Huffman codes */

static uint16_t reversed(unsigned code, int length)
{
    code = (code & 0x5555) << 1 | (code & 0xaaaa) >> 1;
    code = (code & 0x3333) << 2 | (code & 0xcccc) >> 2;
    code = (code & 0x0f0f) << 4 | (code & 0xf0f0) >> 4;
    code = (code & 0x00ff) << 8 | (code & 0xff00) >> 8;
    return (uint16_t)(code >> (16 - length));
}

/* RFC 1951 §3.2.2: canonical codes from lengths, stored with their first bit lowest, as they are written. */
static void assign_codes(symbol *symbols, int n)
{
    unsigned counts[16] = {0}, next[16];
    unsigned code = 0;
    for (int i = 0; i < n; i++)
        counts[symbols[i].length]++;
    counts[0] = 0;
    for (int length = 1; length < 16; length++) {
        code = (code + counts[length - 1]) << 1;
        next[length] = code;
    }
    for (int i = 0; i < n; i++)
        if (symbols[i].length)
            symbols[i].code = reversed(next[symbols[i].length]++, symbols[i].length);
}

static void sort_ascending(uint32_t *a, int n)
{
    for (int gap = n > 40 ? 13 : n > 12 ? 4 : 1; gap; gap = gap == 13 ? 4 : gap == 4 ? 1 : 0)
        for (int i = gap; i < n; i++) {
            uint32_t v = a[i];
            int j = i;
            for (; j >= gap && a[j - gap] > v; j -= gap)
                a[j] = a[j - gap];
            a[j] = v;
        }
}

/* Code lengths for the frequencies, none above `limit`. At least two symbols are given one, used or not, since
 * some decoders refuse a code with holes. */
static void build_code(const uint32_t *frequency, symbol *symbols, int n, int limit)
{
    uint32_t keys[LITERALS], weight[LITERALS];
    int used = 0;
    for (int i = 0; i < n; i++) {
        symbols[i].length = 0;
        if (frequency[i])
            keys[used++] = (frequency[i] < 1u << 22 ? frequency[i] : 1u << 22) << 9 | (uint32_t)i;
    }
    for (int i = 0; used < 2; i++)
        if (!frequency[i])
            keys[used++] = 1u << 9 | (uint32_t)i;
    sort_ascending(keys, used);

    /* Moffat and Katajainen, "In-place calculation of minimum-redundancy codes" (1995): weights become parent
     * indices, parents become depths of inner nodes, those become depths of leaves. */
    int root = 0, leaf = 2, next;
    for (int i = 0; i < used; i++)
        weight[i] = keys[i] >> 9;
    weight[0] += weight[1];
    for (next = 1; next < used - 1; next++) {
        if (leaf >= used || weight[root] < weight[leaf]) {
            weight[next] = weight[root];
            weight[root++] = (uint32_t)next;
        } else
            weight[next] = weight[leaf++];
        if (leaf >= used || (root < next && weight[root] < weight[leaf])) {
            weight[next] += weight[root];
            weight[root++] = (uint32_t)next;
        } else
            weight[next] += weight[leaf++];
    }
    unsigned counts[32] = {0};
    weight[used - 2] = 0;
    for (next = used - 3; next >= 0; next--)
        weight[next] = weight[weight[next]] + 1;
    int available = 1, inner = 0, depth = 0;
    root = used - 2;
    while (available > 0) {
        while (root >= 0 && (int)weight[root] == depth) {
            inner++;
            root--;
        }
        counts[depth < limit ? depth : limit] += (unsigned)(available - inner);
        available = 2 * inner;
        depth++;
        inner = 0;
    }
    /* Leaves cut to `limit` oversubscribe the code: lengthen the longest of the others until Kraft's sum is 1. */
    uint32_t kraft = 0;
    for (int length = 1; length <= limit; length++)
        kraft += counts[length] << (limit - length);
    while (kraft > 1u << limit) {
        int length = limit - 1;
        while (!counts[length])
            length--;
        counts[length]--;
        counts[length + 1] += 2;
        counts[limit]--;
        kraft--;
    }
    int k = used;                       /* the most frequent get the shortest */
    for (int length = 1; length <= limit; length++)
        for (unsigned c = counts[length]; c; c--)
            symbols[keys[--k] & 511].length = (uint8_t)length;
    assign_codes(symbols, n);
}

__attribute__((constructor)) static void fill_tables(void)
{
    for (int i = 0; i < 288; i++)
        fixed_literals[i].length = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    assign_codes(fixed_literals, 288);
    for (int i = 0; i < DISTANCES; i++) {
        fixed_distances[i].length = 5;
        fixed_distances[i].code = reversed((unsigned)i, 5);
    }
    unsigned base = 3;
    for (int code = 0; code < 28; code++) {
        length_extra[code] = (uint8_t)(code < 8 ? 0 : code / 4 - 1);
        length_base[code] = (uint16_t)base;
        for (unsigned i = 0; i < 1u << length_extra[code] && base <= MAX_MATCH; i++)
            length_code[base++] = (uint8_t)code;
    }
    length_base[28] = MAX_MATCH;        /* §3.2.5: 258 has a code of its own */
    length_code[MAX_MATCH] = 28;
}

/* §3.2.5: the code of a distance, and how many extra bits follow it. */
static ALWAYS_INLINE unsigned distance_code(unsigned distance, unsigned *extra)
{
    unsigned d = distance - 1;
    if (d < 4) {
        *extra = 0;
        return d;
    }
    unsigned top = 31 - (unsigned)__builtin_clz(d);
    *extra = top - 1;
    return 2 * top + (d >> (top - 1) & 1);
}

/* Blocks */

typedef struct {
    symbol literals[LITERALS];
    symbol distances[DISTANCES];
} codes;

static ALWAYS_INLINE void put_literals(bit_writer *w, const symbol *literals, const uint8_t *p, uint32_t n)
{
    for (; n >= 3; n -= 3, p += 3) {
        symbol a = literals[p[0]], b = literals[p[1]], c = literals[p[2]];
        put(w, a.code, a.length);
        put(w, b.code, b.length);
        put(w, c.code, c.length);
        flush(w);
    }
    for (; n; n--, p++)
        put(w, literals[*p].code, literals[*p].length);
    flush(w);
}

static void write_symbols(bit_writer *writer, const symbol *literals, const symbol *distances,
                          const uint8_t *src, size_t n, size_t count)
{
    bit_writer w = *writer;
    const uint8_t *end = src + n;
    for (const sequence *s = sequences; s < sequences + count; s++) {
        unsigned extra;
        if (s->literals) {
            put_literals(&w, literals, src, s->literals);
            src += s->literals;
        }
        unsigned lc = length_code[s->length];
        symbol a = literals[257 + lc];
        put(&w, a.code, a.length);
        put(&w, s->length - length_base[lc], length_extra[lc]);
        symbol b = distances[distance_code(s->distance, &extra)];
        put(&w, b.code, b.length);
        put(&w, (s->distance - 1u) & ((1u << extra) - 1), extra);
        flush(&w);
        src += s->length;
    }
    put_literals(&w, literals, src, (uint32_t)(end - src));
    put(&w, literals[END_OF_BLOCK].code, literals[END_OF_BLOCK].length);
    flush(&w);
    *writer = w;
}

static void write_fixed(bit_writer *w, const uint8_t *src, size_t n, size_t count)
{
    put(w, 1 << 1, 3);                  /* BFINAL 0, BTYPE 01 */
    write_symbols(w, fixed_literals, fixed_distances, src, n, count);
}

static void write_stored(bit_writer *w, const uint8_t *src, size_t n)
{
    while (n) {
        size_t part = n < 65535 ? n : 65535;
        put(w, 0, 3);
        align(w);
        put(w, part | (~part & 0xffff) << 16, 32);
        flush(w);
        memcpy(w->out, src, part);
        w->out += part;
        src += part;
        n -= part;
    }
}

/* The lengths of both codes, run-length coded with the symbols of §3.2.7. */
typedef struct {
    uint8_t symbol;
    uint8_t repeat;
} run;

static const uint8_t run_extra[CODE_LENGTHS] = {[16] = 2, [17] = 3, [18] = 7};

static int run_lengths(const uint8_t *lengths, int n, run *runs, uint32_t *frequency)
{
    int count = 0;
    for (int i = 0; i < n;) {
        uint8_t value = lengths[i];
        int same = 1;
        while (i + same < n && lengths[i + same] == value)
            same++;
        i += same;
        if (value) {
            runs[count++] = (run){value, 0};
            frequency[value]++;
            same--;
        }
        while (same >= 3) {
            int most = value ? 6 : 138;
            int take = same < most ? same : most;
            uint8_t code = value ? 16 : take < 11 ? 17 : 18;
            runs[count++] = (run){code, (uint8_t)(take - (code == 18 ? 11 : 3))};
            frequency[code]++;
            same -= take;
        }
        for (; same; same--) {
            runs[count++] = (run){value, 0};
            frequency[value]++;
        }
    }
    return count;
}

typedef struct {
    run runs[LITERALS + DISTANCES];
    symbol symbols[CODE_LENGTHS];
    int count, literals, distances, listed;
} header;

static const uint8_t listing[CODE_LENGTHS] = {
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
};

/* Fills `h` and returns its size in bits. */
static uint64_t plan_header(header *h, const codes *c)
{
    uint8_t lengths[LITERALS + DISTANCES];
    uint32_t frequency[CODE_LENGTHS] = {0};
    h->literals = LITERALS;
    while (h->literals > 257 && !c->literals[h->literals - 1].length)
        h->literals--;
    h->distances = DISTANCES;
    while (h->distances > 1 && !c->distances[h->distances - 1].length)
        h->distances--;
    for (int i = 0; i < h->literals; i++)
        lengths[i] = c->literals[i].length;
    for (int i = 0; i < h->distances; i++)
        lengths[h->literals + i] = c->distances[i].length;
    h->count = run_lengths(lengths, h->literals + h->distances, h->runs, frequency);
    build_code(frequency, h->symbols, CODE_LENGTHS, 7);
    h->listed = CODE_LENGTHS;
    while (h->listed > 4 && !h->symbols[listing[h->listed - 1]].length)
        h->listed--;
    uint64_t bits = 3 + 5 + 5 + 4 + 3 * (uint64_t)h->listed;
    for (int i = 0; i < CODE_LENGTHS; i++)
        bits += (uint64_t)frequency[i] * (h->symbols[i].length + run_extra[i]);
    return bits;
}

static void put_header(bit_writer *w, const header *h)
{
    put(w, 2 << 1, 3);                  /* BFINAL 0, BTYPE 10 */
    put(w, (uint64_t)(h->literals - 257), 5);
    put(w, (uint64_t)(h->distances - 1), 5);
    put(w, (uint64_t)(h->listed - 4), 4);
    flush(w);
    for (int i = 0; i < h->listed; i++) {
        put(w, h->symbols[listing[i]].length, 3);
        flush(w);
    }
    for (int i = 0; i < h->count; i++) {
        run r = h->runs[i];
        put(w, h->symbols[r.symbol].code, h->symbols[r.symbol].length);
        put(w, r.repeat, run_extra[r.symbol]);
        flush(w);
    }
}

/* Writes the first `count` sequences, and the literals after them, that make up src[0 .. n). Where most bytes
 * are literals the forms are always counted out, so that what does not compress is stored. */
static void write_block(bit_writer *w, const uint8_t *src, size_t n, size_t count, uint32_t count_from)
{
    size_t literal_bytes = n;
    for (size_t i = 0; i < count; i++)
        literal_bytes -= sequences[i].length;
    if (literal_bytes + count < count_from && literal_bytes <= n / 2) {
        write_fixed(w, src, n, count);
        return;
    }
    codes c;
    header h;
    uint32_t literals[LITERALS] = {0}, distances[DISTANCES] = {0};
    uint64_t extra_bits = 0;
    const uint8_t *p = src;
    literals[END_OF_BLOCK] = 1;
    for (const sequence *s = sequences; s < sequences + count; s++) {
        unsigned extra;
        for (uint32_t i = 0; i < s->literals; i++)
            literals[*p++]++;
        unsigned lc = length_code[s->length];
        literals[257 + lc]++;
        distances[distance_code(s->distance, &extra)]++;
        extra_bits += length_extra[lc] + extra;
        p += s->length;
    }
    while (p < src + n)
        literals[*p++]++;

    uint64_t fixed = 3 + extra_bits, dynamic = extra_bits;
    build_code(literals, c.literals, LITERALS, 15);
    build_code(distances, c.distances, DISTANCES, 15);
    dynamic += plan_header(&h, &c);
    for (int i = 0; i < LITERALS; i++) {
        fixed += (uint64_t)literals[i] * fixed_literals[i].length;
        dynamic += (uint64_t)literals[i] * c.literals[i].length;
    }
    for (int i = 0; i < DISTANCES; i++) {
        fixed += (uint64_t)distances[i] * 5;
        dynamic += (uint64_t)distances[i] * c.distances[i].length;
    }
    uint64_t stored = 8 * (uint64_t)n + (n / 65535 + 1) * 40;
    if (stored <= fixed && stored <= dynamic)
        write_stored(w, src, n);
    else if (fixed <= dynamic)
        write_fixed(w, src, n, count);
    else {
        put_header(w, &h);
        write_symbols(w, c.literals, c.distances, src, n, count);
    }
}

/* Matches */

static ALWAYS_INLINE uint32_t hash(const fabric_deflate *d, const uint8_t *p)
{
    return (load32(p) * 2654435761u) >> d->hash_shift;
}

static ALWAYS_INLINE uint32_t common_length(const uint8_t *a, const uint8_t *b, const uint8_t *end)
{
    const uint8_t *start = b;
    while (b + 8 <= end) {
        uint64_t difference = load64(a) ^ load64(b);
        if (difference)
            return (uint32_t)(b - start) + equal_bytes(difference);
        a += 8;
        b += 8;
    }
    while (b < end && *a == *b) {
        a++;
        b++;
    }
    return (uint32_t)(b - start);
}

static ALWAYS_INLINE uint32_t insert(fabric_deflate *d, uint32_t p, int chained)
{
    uint16_t *slot = &d->head[hash(d, d->window + p)];
    uint32_t older = *slot;
    *slot = (uint16_t)p;
    if (chained)
        d->chain[p & d->chain_mask] = (uint16_t)older;
    return older;
}

/* The longest match for position p among the candidates, above `best`; 0 when there is none. A table entry is
 * only a hint: whatever it says, the position must lie in the window behind p, and the bytes are compared. */
static ALWAYS_INLINE uint32_t find(const fabric_deflate *d, uint32_t p, uint32_t candidate, uint32_t stop,
                                   uint32_t best, uint32_t *at, int chained)
{
    const uint8_t *window = d->window;
    uint32_t low = p > d->window_size && p - d->window_size > d->low ? p - d->window_size : d->low;
    uint32_t wanted = load32(window + p), found = 0;
    int tries = d->depth;
    while (candidate >= low && candidate < p && p + best < stop) {
        if (load32(window + candidate + best - 3) == load32(window + p + best - 3) &&
            load32(window + candidate) == wanted) {
            uint32_t length = 4 + common_length(window + candidate + 4, window + p + 4, window + stop);
            if (length > best) {
                best = found = length;
                *at = candidate;
            }
        }
        if (!chained || --tries == 0)
            break;
        uint32_t older = d->chain[candidate & d->chain_mask];
        if (older >= candidate)
            break;
        candidate = older;
    }
    return found;
}

/* One call of fabric_deflate_message. */
typedef struct {
    bit_writer w;
    const uint8_t *block;   /* where in the message the open block starts */
    size_t covered;         /* bytes of it that the sequences stand for */
    size_t count;           /* sequences */
    uint32_t pending;       /* literals behind the last sequence */
    uint32_t count_from;
} message;

static ALWAYS_INLINE void add_match(message *m, uint32_t literals, uint32_t length, uint32_t distance)
{
    literals += m->pending;
    m->pending = 0;
    while (length) {
        /* The last part must not be left with fewer than three bytes. */
        uint32_t part = length <= MAX_MATCH ? length : length >= MAX_MATCH + 3 ? MAX_MATCH : length - 3;
        if (UNLIKELY(m->count == MAX_SEQUENCES)) {
            write_block(&m->w, m->block, m->covered, m->count, m->count_from);
            m->block += m->covered;
            m->covered = m->count = 0;
        }
        sequences[m->count++] = (sequence){literals, (uint16_t)part, (uint16_t)distance};
        m->covered += literals + part;
        literals = 0;
        length -= part;
    }
}

/* Cuts window[p .. stop) into sequences. `chained` is a constant at each call: two versions are compiled. One that
 * is not chained leaves the chain as it was, which then holds stale hints. */
static ALWAYS_INLINE void cut(fabric_deflate *d, message *m, uint32_t p, uint32_t stop, uint32_t step, int chained)
{
    const uint8_t *window = d->window;
    uint32_t anchor = p, fresh = p;     /* the first byte not in a sequence; the first not in the tables */
    unsigned misses = 0;
    while (p + MIN_MATCH <= stop) {
        uint32_t at = 0, other = 0;
        uint32_t length = find(d, p, insert(d, p, chained), stop, MIN_MATCH - 1, &at, chained);
        fresh = p + 1;
        if (!length) {
            p += 1 + (misses++ >> 6);   /* hurry through what does not compress */
            continue;
        }
        misses = 0;
        while (chained && length < d->lazy && p + 1 + MIN_MATCH <= stop) {
            uint32_t longer = find(d, p + 1, insert(d, p + 1, 1), stop, length, &other, 1);
            fresh = p + 2;
            if (!longer)
                break;
            p++;
            length = longer;
            at = other;
        }
        uint32_t distance = p - at;
        while (p > anchor && at > d->low && window[p - 1] == window[at - 1]) {
            p--;
            at--;
            length++;
        }
        add_match(m, p - anchor, length, distance);
        p = anchor = p + length;
        uint32_t last = p + MIN_MATCH <= stop ? p : stop - MIN_MATCH + 1;
        for (; fresh < last; fresh += step)
            insert(d, fresh, chained);
    }
    m->pending += stop - anchor;
}

static void move_positions(uint16_t *positions, size_t n, uint16_t by)
{
    for (size_t i = 0; i < n; i++)      /* one saturating subtraction per vector */
        positions[i] = positions[i] > by ? (uint16_t)(positions[i] - by) : 0;
}

/* Moves the newer half of the window down, by a multiple of the chain's size: entries there keep their place. */
static void slide(fabric_deflate *d)
{
    uint32_t size = d->window_size;
    memcpy(d->window, d->window + size, size);
    d->end -= size;
    d->low = d->low > size ? d->low - size : 1;
    move_positions(d->head, (size_t)1 << (32 - d->hash_shift), (uint16_t)size);
    if (d->chain)
        move_positions(d->chain, d->chain_mask + 1, (uint16_t)size);
}

/* Copies as much as fits behind the history; returns how much, more than 0. */
static uint32_t append(fabric_deflate *d, const uint8_t *src, size_t n)
{
    if (d->end == 2 * d->window_size)
        slide(d);
    uint32_t room = 2 * d->window_size - d->end;
    uint32_t part = n < room ? (uint32_t)n : room;
    memcpy(d->window + d->end, src, part);
    d->end += part;
    return part;
}

/* What the header declares */

/* Measured on JSON with a window of 4 KB (perf/micro_deflate.py). Levels 1 to 3 do not make codes for what
 * compresses well without; the others do, for a fifth fewer bytes of a long message and a third more time.
 * From LONG_MESSAGE on, codes save more than a search does: levels 1 to 3 then try one candidate and make codes, in
 * the time that level 3 would take without, for a fifth fewer bytes. */
static const struct {
    uint16_t depth, lazy, step;
    uint32_t count_from;    /* symbols in a block; see WORTH_COUNTING */
} levels[10] = {
    [1] = {1, 0, 4, UINT32_MAX},
    [2] = {2, 8, 6, UINT32_MAX},
    [3] = {4, 8, 4, UINT32_MAX},
    [4] = {8, 8, 3, WORTH_COUNTING},
    [5] = {12, 12, 2, WORTH_COUNTING},
    [6] = {16, 16, 1, WORTH_COUNTING},
    [7] = {32, 32, 1, WORTH_COUNTING},
    [8] = {64, 64, 1, WORTH_COUNTING},
    [9] = {512, MAX_MATCH, 1, WORTH_COUNTING},
};

static size_t head_bytes(int hash_bits) { return sizeof(uint16_t) << hash_bits; }

static size_t chain_bytes(int window_bits, int level)
{
    return levels[level].depth > 1 ? sizeof(uint16_t) << (window_bits - 1) : 0;
}

size_t fabric_deflate_memory(int window_bits, int level, int hash_bits)
{
    size_t window_bytes = (size_t)2 << window_bits;
    return sizeof(fabric_deflate) + head_bytes(hash_bits) + chain_bytes(window_bits, level) + window_bytes;
}

fabric_deflate *fabric_deflate_new(int window_bits, int level, int hash_bits)
{
    /* Zeroed, so that a hint is never read from memory that nobody has written. */
    fabric_deflate *d = calloc(1, fabric_deflate_memory(window_bits, level, hash_bits));
    if (!d)
        return NULL;
    d->window_size = 1u << window_bits;
    d->end = d->low = 1;                /* position 0 means none */
    d->hash_shift = 32 - hash_bits;
    d->depth = levels[level].depth;
    d->lazy = levels[level].lazy;
    d->step = levels[level].step;
    d->count_from = levels[level].count_from;
    uint8_t *p = (uint8_t *)(d + 1);
    d->head = (uint16_t *)p;
    p += head_bytes(hash_bits);
    if (d->depth > 1) {
        d->chain = (uint16_t *)p;
        d->chain_mask = d->window_size / 2 - 1;
        p += chain_bytes(window_bits, level);
    }
    d->window = p;
    return d;
}

void fabric_deflate_free(fabric_deflate *d)
{
    free(d);
}

void fabric_deflate_forget(fabric_deflate *d)
{
    d->low = d->end;
}

void fabric_deflate_skip(fabric_deflate *d, const uint8_t *src, size_t n)
{
    if (n > d->window_size) {
        src += n - d->window_size;
        n = d->window_size;
        fabric_deflate_forget(d);
    }
    while (n) {
        uint32_t p = d->end, part;
        if (p == 2 * d->window_size)
            p -= d->window_size;
        part = append(d, src, n);
        for (; p + MIN_MATCH <= d->end; p += d->step)
            insert(d, p, d->chain != NULL);
        src += part;
        n -= part;
    }
}

size_t fabric_deflate_bound(size_t n)
{
    /* No form takes more than nine bits per byte; a block adds under 8 bytes to that, and all blocks but the last
     * stand for MAX_SEQUENCES matches of at least three bytes. The rest is slack for flush(). */
    return n + (n >> 3) + (n >> 10) + 64;
}

size_t fabric_deflate_message(fabric_deflate *d, const uint8_t *src, size_t n, uint8_t *out)
{
    int quick = n >= LONG_MESSAGE && d->count_from > WORTH_COUNTING;
    message m = {.w = {.out = out}, .block = src, .count_from = quick ? WORTH_COUNTING : d->count_from};
    while (n) {
        uint32_t part = append(d, src, n);
        if (d->chain && !quick)
            cut(d, &m, d->end - part, d->end, d->step, 1);
        else
            cut(d, &m, d->end - part, d->end, quick ? LONG_STEP : d->step, 0);
        src += part;
        n -= part;
    }
    if (src != m.block)
        write_block(&m.w, m.block, (size_t)(src - m.block), m.count, m.count_from);
    put(&m.w, 0, 3);                    /* the empty stored block */
    align(&m.w);
    return (size_t)(m.w.out - out);
}

size_t fabric_deflate_recall(size_t n, uint8_t *out)
{
    message m = {.w = {.out = out}};
    add_match(&m, 0, (uint32_t)n, (uint32_t)n);
    write_fixed(&m.w, out, n, m.count);     /* there are no literals to read */
    put(&m.w, 0, 3);
    align(&m.w);
    put(&m.w, 0xffff0000u, 32);
    flush(&m.w);
    return (size_t)(m.w.out - out);
}
