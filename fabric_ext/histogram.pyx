"""A High Dynamic Range histogram: integer values, bounded relative error, bounded memory.

Owns: the bucket layout of HdrHistogram (Gil Tene, hdrhistogram.org), the counts, their V2 and `.hgrm` forms.
Never: a unit (`fabric` records nanoseconds), a clock, a lock (one thread records).

The layout. With `f` significant figures a bucket has 2^m slots, the smallest power of two not below 2 * 10^f.
Bucket 0 covers 0 .. 2^m units in slots of one unit; every further bucket covers twice the range of the one
before in slots twice as wide, and only its upper half is new. So from 10^f units up no slot is wider than
10^-f of the values in it. A unit is the largest power of two not above `lowest_discernible`.

Memory. The dense array of the default layout would take 300 KB, most of it zeros for ever. Counts are kept
in chunks of 1/16 half-bucket, made when a value first falls into one: an unused histogram costs its object,
one with a few values 2 to 4 KB, and none much more than the dense array.
"""

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from libc.math cimport isfinite, llrint, log2, pow, sqrt
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint64_t
from libc.string cimport memset

import base64
import binascii
import collections
import struct
import zlib


cdef extern from *:
    """
    /* Parameters are Py_ssize_t, because Cython converts that by __index__: seconds passed for nanoseconds
       are a TypeError, where int64_t would take the float and record 0. */
    _Static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "fabric needs a 64-bit platform");
    #define fabric_highest_bit(value) (63 - __builtin_clzll(value))
    """
    int highest_bit "fabric_highest_bit"(uint64_t value) noexcept nogil  # value > 0


# V2 encoding, as in HdrHistogram's AbstractHistogram.java. The high nibble of a cookie's last byte held a
# word size in V1; V2 writers put 1 there and readers ignore it.
cdef uint64_t COOKIE_MASK = 0xFFFFFF0F
cdef uint64_t V2_COOKIE = 0x1C849303
cdef uint64_t V2_COMPRESSED_COOKIE = 0x1C849304
cdef uint64_t V2_COOKIE_NIBBLE = 0x10
cdef object V2_HEADER = struct.Struct(">IIiiqqd")
cdef object V2_COMPRESSED_HEADER = struct.Struct(">II")
cdef bytes BASE64_PREFIX = b"HIST"  # both cookies in base64
cdef int LONGEST_VARINT = 9

Slot = collections.namedtuple("Slot", ("lowest", "highest", "samples", "total"))
PercentileStep = collections.namedtuple("PercentileStep", ("value", "percentile", "total"))


@cython.final
cdef class Histogram:
    """Counts of integer values between 0 and `highest_trackable`, each exact to `significant_figures` digits.

    lowest_discernible: the smallest difference worth telling apart, in the unit of the values; >= 1.
    highest_trackable: at least twice that. The layout rounds it up; values above the rounded one are recorded
        as that and counted in `clamped_high`, negative ones as 0 and counted in `clamped_low`.
    significant_figures: 1 to 5.

    The defaults suit latencies in nanoseconds: three digits from 1 µs to a day.
    Raises ValueError for a layout outside these limits or wider than 63 bits.
    """

    def __cinit__(self, int64_t lowest_discernible=1, int64_t highest_trackable=86_400_000_000_000,
                  int significant_figures=3):
        if lowest_discernible < 1:
            raise ValueError(f"lowest_discernible must be at least 1, not {lowest_discernible}")
        if highest_trackable // 2 < lowest_discernible:
            raise ValueError(
                f"highest_trackable must be at least twice lowest_discernible ({lowest_discernible}), "
                f"not {highest_trackable}"
            )
        if not 1 <= significant_figures <= 5:
            raise ValueError(f"significant_figures must be 1 to 5, not {significant_figures}")
        self.lowest_discernible = lowest_discernible
        self.highest_trackable = highest_trackable
        self.significant_figures = significant_figures
        self.unit_magnitude = highest_bit(<uint64_t>lowest_discernible)
        self.half_magnitude = highest_bit(<uint64_t>(2 * 10 ** significant_figures - 1))
        if self.unit_magnitude + self.half_magnitude > 61:
            raise ValueError(
                f"lowest_discernible {lowest_discernible} with {significant_figures} significant figures "
                "needs more than 63 bits"
            )
        self.linear_mask = ((<uint64_t>2 << self.half_magnitude) - 1) << self.unit_magnitude
        cdef int buckets = 1
        cdef uint64_t covered = <uint64_t>2 << (self.half_magnitude + self.unit_magnitude)
        while covered - 1 < <uint64_t>highest_trackable:
            covered <<= 1
            buckets += 1
        self.capacity = <int64_t>(covered - 1)
        self.slots = (buckets + 1) << self.half_magnitude
        self.chunk_magnitude = max(self.half_magnitude - 4, 4)
        self.smallest = INT64_MAX

    def __dealloc__(self):
        PyMem_RawFree(self.directory)
        PyMem_RawFree(self.pool)

    # ------------------------------------------------------------------ layout

    cdef int slot_of(self, int64_t value) noexcept nogil:
        """The slot of a value in 0 .. capacity."""
        cdef int width = highest_bit(<uint64_t>value | self.linear_mask) - self.half_magnitude  # its log2
        return ((width - self.unit_magnitude) << self.half_magnitude) + <int>(value >> width)

    cdef int64_t width_of(self, int slot) noexcept nogil:
        return <int64_t>1 << (max((slot >> self.half_magnitude) - 1, 0) + self.unit_magnitude)

    cdef int64_t lowest_of(self, int slot) noexcept nogil:
        cdef int bucket = max((slot >> self.half_magnitude) - 1, 0)
        return <int64_t>(slot - (bucket << self.half_magnitude)) << (bucket + self.unit_magnitude)

    cdef int64_t highest_of(self, int slot) noexcept nogil:
        return self.lowest_of(slot) + (self.width_of(slot) - 1)

    cdef double median_of(self, int slot) noexcept nogil:
        return <double>(self.lowest_of(slot) + (self.width_of(slot) >> 1))

    cdef bint same_layout(self, Histogram other) noexcept nogil:
        return (
            self.unit_magnitude == other.unit_magnitude
            and self.half_magnitude == other.half_magnitude
            and self.slots == other.slots
        )

    # ------------------------------------------------------------------ counts

    cdef int64_t* cell(self, int slot) noexcept nogil:
        """The count of `slot`, for writing; NULL when memory is exhausted. Valid until the next call."""
        cdef int chunk = slot >> self.chunk_magnitude
        if self.directory == NULL or self.directory[chunk] == 0:
            if self.new_chunk(chunk) < 0:
                return NULL
        cdef int place = self.directory[chunk] - 1
        return self.pool + (place << self.chunk_magnitude) + (slot & ((1 << self.chunk_magnitude) - 1))

    cdef int new_chunk(self, int chunk) noexcept nogil:
        """Give `chunk` zeroed counts. Returns 0, or -1 when memory is exhausted, with nothing changed."""
        cdef int chunks = self.slots >> self.chunk_magnitude
        cdef size_t chunk_bytes = sizeof(int64_t) << self.chunk_magnitude
        cdef int wanted
        cdef void* grown
        if self.directory == NULL:
            self.directory = <uint16_t*>PyMem_RawCalloc(chunks, sizeof(uint16_t))
            if self.directory == NULL:
                return -1
        if self.chunks_used == self.chunks_allocated:
            wanted = min(max(2 * self.chunks_allocated, 2), chunks)
            grown = PyMem_RawRealloc(self.pool, wanted * chunk_bytes)
            if grown == NULL:
                return -1
            self.pool = <int64_t*>grown
            self.chunks_allocated = wanted
        memset(<char*>self.pool + self.chunks_used * chunk_bytes, 0, chunk_bytes)
        self.chunks_used += 1
        self.directory[chunk] = <uint16_t>self.chunks_used
        return 0

    cdef int64_t count_of(self, int slot) noexcept nogil:
        cdef int chunk = slot >> self.chunk_magnitude
        if self.directory == NULL or self.directory[chunk] == 0:
            return 0
        cdef int place = self.directory[chunk] - 1
        return self.pool[(place << self.chunk_magnitude) + (slot & ((1 << self.chunk_magnitude) - 1))]

    cdef int next_recorded(self, int slot) noexcept nogil:
        """The first slot from `slot` on that has a count, or -1."""
        if self.directory == NULL:
            return -1
        while slot < self.slots:
            if self.directory[slot >> self.chunk_magnitude] == 0:
                slot = ((slot >> self.chunk_magnitude) + 1) << self.chunk_magnitude
            elif self.count_of(slot) == 0:
                slot += 1
            else:
                return slot
        return -1

    cdef void put(self, int64_t value, int64_t n) noexcept nogil:
        """Record `value` n times, or count it as unrecorded where there is no room for it."""
        cdef int64_t within = min(max(value, 0), self.capacity)
        cdef int64_t* cell = NULL
        if n <= INT64_MAX - self.count:  # the sum of all cells, so none of them overflows
            cell = self.cell(self.slot_of(within))
        if cell == NULL:
            self.add_unrecorded(n)
            return
        cell[0] += n
        self.count += n
        if value < within:
            self.clamped_low += n
        elif value > within:
            self.clamped_high += n
        if within < self.smallest:
            self.smallest = within
        if within > self.largest:
            self.largest = within

    cdef void add_unrecorded(self, int64_t n) noexcept nogil:
        self.unrecorded += min(n, INT64_MAX - self.unrecorded)

    cdef int require_room(self, object n) except -1:
        """Raise OverflowError unless n more values can be counted."""
        if n < 0:
            raise ValueError(f"a count cannot be negative: {n}")
        if n > INT64_MAX - self.count:
            raise OverflowError(f"{n} more values would overflow the count of {self.count}")
        return 0

    # ------------------------------------------------------------------ recording

    cpdef void record(self, Py_ssize_t value) noexcept nogil:
        """Count one value."""
        self.put(value, 1)

    def record_n(self, Py_ssize_t value, Py_ssize_t n):
        """Count `value` n times. Raises ValueError if n is negative, OverflowError past 2^63 in all."""
        self.require_room(n)
        if n:
            self.put(value, n)

    def record_scaled(self, double value, double scale, /):
        """Count `value * scale`, rounded. Raises ValueError unless that is finite; clamps as `record`."""
        value *= scale
        if not isfinite(value):
            raise ValueError(f"not a finite value: {value}")
        # 2^63 is exact as a double, 2^63 - 1 is not.
        if value >= <double>INT64_MAX:
            self.put(INT64_MAX, 1)
        elif value <= -<double>INT64_MAX:
            self.put(-INT64_MAX, 1)
        else:
            self.put(llrint(value), 1)

    def record_corrected(self, Py_ssize_t value, Py_ssize_t expected_interval, Py_ssize_t n=1):
        """Count `value`, and with it the values that went unmeasured while it was waited for.

        Corrects for coordinated omission: a client that wants to send every `expected_interval` but waits
        `value` for one answer would also have seen value - interval, value - 2 * interval, … down to the last
        above 0. (The Java library leaves out the last one if it is below the interval; `hdrhistogram` counts
        it.) An interval <= 0 corrects nothing. Costs one step per slot, however many values that is.
        """
        cdef object samples = n
        if 0 < expected_interval < value:
            samples *= -(-(<object>value) // expected_interval)  # a Python integer, rounded up
        self.require_room(samples)
        if n:
            self.put_corrected(value, expected_interval, n)

    cdef void put_corrected(self, int64_t value, int64_t interval, int64_t n) noexcept nogil:
        cdef int64_t lowest, omitted
        self.put(value, n)
        if interval <= 0:
            return
        value -= min(value, interval)
        while value > 0:
            # All omitted values that share this one's slot at once, and so for those above the capacity.
            if value > self.capacity:
                lowest = self.capacity + 1
            else:
                lowest = max(self.lowest_of(self.slot_of(value)), 1)
            omitted = (value - lowest) // interval + 1
            self.put(value, n * omitted)
            value -= min(value, omitted * interval)

    def add(self, Histogram other not None):
        """Add the counts of `other`. If its layout is another, its values count as the lowest of their slots.

        Values beyond this layout are clamped and counted as such. Raises OverflowError past 2^63 in all.
        """
        self.require_room(other.count)
        cdef int slot = other.next_recorded(0)
        cdef bint same = self.same_layout(other)
        cdef int64_t* cell
        cdef int64_t n
        while slot >= 0:
            n = other.count_of(slot)
            if not same:
                self.put(other.lowest_of(slot), n)
            else:
                cell = self.cell(slot)
                if cell == NULL:
                    raise MemoryError
                cell[0] += n
                self.count += n
            slot = other.next_recorded(slot + 1)
        if same:
            self.smallest = min(self.smallest, other.smallest)
            self.largest = max(self.largest, other.largest)
        self.clamped_low += other.clamped_low
        self.clamped_high += other.clamped_high
        self.add_unrecorded(other.unrecorded)

    def copy(self):
        """A histogram of the same layout and counts."""
        cdef Histogram copied = self.empty_like()
        copied.add(self)
        return copied

    def copy_corrected(self, Py_ssize_t expected_interval):
        """A copy with every recorded value corrected for coordinated omission: see `record_corrected`.

        For data that was not corrected when recorded; correcting twice counts twice.
        """
        cdef Histogram corrected = self.empty_like()
        for slot in self.recorded():
            corrected.record_corrected(slot.highest, expected_interval, slot.samples)
        corrected.clamped_low += self.clamped_low
        corrected.clamped_high += self.clamped_high
        corrected.add_unrecorded(self.unrecorded)
        return corrected

    cdef Histogram empty_like(self):
        return Histogram(self.lowest_discernible, self.highest_trackable, self.significant_figures)

    def reset(self):
        """Forget everything recorded. The memory is kept, so that recording again allocates nothing."""
        if self.pool != NULL:
            memset(self.pool, 0, (<size_t>self.chunks_used << self.chunk_magnitude) * sizeof(int64_t))
        self.smallest = INT64_MAX
        self.largest = 0
        self.count = self.clamped_low = self.clamped_high = self.unrecorded = 0

    # ------------------------------------------------------------------ reading

    @property
    def max_recordable(self):
        """The largest value that is not clamped: `highest_trackable`, rounded up by the layout."""
        return self.capacity

    @property
    def min(self):
        """The lowest value of the first slot in use; 0 while empty."""
        return self.lowest_of(self.slot_of(self.smallest)) if self.count else 0

    @property
    def max(self):
        """The highest value of the last slot in use; 0 while empty."""
        return self.highest_of(self.slot_of(self.largest)) if self.count else 0

    @property
    def mean(self):
        """The arithmetic mean, each value taken as the middle of its slot; 0.0 while empty."""
        return self.sum / self.count if self.count else 0.0

    @property
    def sum(self):
        """The sum of all values, each taken as the middle of its slot."""
        cdef double total = 0
        cdef int slot = self.next_recorded(0)
        while slot >= 0:
            total += <double>self.count_of(slot) * self.median_of(slot)
            slot = self.next_recorded(slot + 1)
        return total

    @property
    def stddev(self):
        """The population's standard deviation, each value taken as the middle of its slot; 0.0 if empty."""
        cdef double total = 0, deviation, mean = self.mean
        cdef int slot = self.next_recorded(0)
        while slot >= 0:
            deviation = self.median_of(slot) - mean
            total += deviation * deviation * <double>self.count_of(slot)
            slot = self.next_recorded(slot + 1)
        return sqrt(total / <double>self.count) if self.count else 0.0

    def value_at_percentile(self, double percentile):
        """The value that `percentile` (0 .. 100) percent of all values do not exceed; 0 while empty.

        It is the highest value of its slot, for percentile 0 the lowest. Raises ValueError outside 0 .. 100.
        """
        return self.values_at_percentiles((percentile,))[0]

    def values_at_percentiles(self, percentiles):
        """The values at several percentiles (any order), in one pass: see `value_at_percentile`."""
        cdef list wanted = [float(percentile) for percentile in percentiles]
        cdef list values = [0] * len(wanted)
        cdef int slot = self.next_recorded(0)
        cdef int64_t total = 0, target
        cdef double percentile
        for percentile in wanted:
            if not 0.0 <= percentile <= 100.0:
                raise ValueError(f"a percentile must be between 0 and 100, not {percentile}")
        if slot < 0:
            return values
        total = self.count_of(slot)
        for index in sorted(range(len(wanted)), key=wanted.__getitem__):
            percentile = wanted[index]
            target = self.target_count(percentile)
            while total < target:
                slot = self.next_recorded(slot + 1)
                total += self.count_of(slot)
            values[index] = self.highest_of(slot) if percentile else self.lowest_of(slot)
        return values

    cdef int64_t target_count(self, double percentile) noexcept nogil:
        """How many values, lowest first, make up `percentile`; 1 .. count."""
        cdef double target = percentile * <double>self.count / 100 + 0.5
        # A double above 2^53 may round up past the count.
        return self.count if target >= <double>self.count else max(<int64_t>target, 1)

    def count_at(self, Py_ssize_t value):
        """How many recorded values share the slot of `value`; 0 for a value outside the layout."""
        return self.count_of(self.slot_of(value)) if 0 <= value <= self.capacity else 0

    def counts_up_to(self, bounds):
        """For each of the ascending `bounds`, how many values lie at or below it, its own slot included."""
        cdef list counts = []
        cdef int slot = self.next_recorded(0)
        cdef int64_t total = 0
        cdef Py_ssize_t bound, previous = 0
        for bound in bounds:
            if bound < previous:
                raise ValueError(f"bounds must ascend from 0: {bound} after {previous}")
            previous = bound
            while slot >= 0 and self.lowest_of(slot) <= bound:
                total += self.count_of(slot)
                slot = self.next_recorded(slot + 1)
            counts.append(total)
        return counts

    def recorded(self):
        """The slots in use, lowest first, as `Slot(lowest, highest, samples, total)`."""
        cdef list slots = []
        cdef int slot = self.next_recorded(0)
        cdef int64_t total = 0
        while slot >= 0:
            total += self.count_of(slot)
            slots.append(Slot(self.lowest_of(slot), self.highest_of(slot), self.count_of(slot), total))
            slot = self.next_recorded(slot + 1)
        return slots

    def percentile_steps(self, int ticks_per_half_distance=5):
        """`PercentileStep(value, percentile, total)` in steps that shrink on the way to 100.

        There are `ticks_per_half_distance` of them in every halving of the distance to 100; 100 is the last.
        """
        if ticks_per_half_distance < 1:
            raise ValueError(f"ticks_per_half_distance must be at least 1, not {ticks_per_half_distance}")
        cdef list steps = []
        cdef double level = 0, following
        cdef int slot = self.next_recorded(0)
        cdef int64_t total = 0
        while slot >= 0 and level < 100:
            total += self.count_of(slot)
            while level < 100 and 100.0 * <double>total / <double>self.count >= level:
                steps.append(PercentileStep(self.highest_of(slot), level, total))
                if total == self.count:
                    break
                following = level + 100 / (ticks_per_half_distance * pow(2, log2(100 / (100 - level)) + 1))
                # So near to 100 that a double cannot tell the next step from this one.
                level = following if following > level else 100
            slot = self.next_recorded(slot + 1)
        if self.count:
            steps.append(PercentileStep(self.max, 100.0, self.count))
        return steps

    def percentile_distribution(self, double scale=1.0, int ticks_per_half_distance=5):
        """The distribution as `.hgrm` text, which HdrHistogram's plotters read.

        scale: what the values are divided by; 1e6 shows nanoseconds as milliseconds.
        Clamped and unrecorded values, if any, are told in a last comment line.
        """
        digits = self.significant_figures
        lines = ["       Value     Percentile TotalCount 1/(1-Percentile)\n"]
        for value, percentile, total in self.percentile_steps(ticks_per_half_distance):
            line = f"{value / scale:12.{digits}f} {percentile / 100:2.12f} {total:10d}"
            lines.append(line if percentile == 100 else f"{line} {1 / (1 - percentile / 100):14.2f}")
        lines += [
            f"#[Mean    = {self.mean / scale:12.{digits}f}, "
            f"StdDeviation   = {self.stddev / scale:12.{digits}f}]",
            f"#[Max     = {self.max / scale:12.{digits}f}, "
            f"TotalCount     = {self.count:12.{digits}f}]",
            f"#[Buckets = {(self.slots >> self.half_magnitude) - 1:12d}, "
            f"SubBuckets     = {2 << self.half_magnitude:12d}]",
        ]
        if self.clamped_low or self.clamped_high or self.unrecorded:
            lines.append(
                f"#[ClampedLow = {self.clamped_low}, ClampedHigh = {self.clamped_high}, "
                f"Unrecorded = {self.unrecorded}]"
            )
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------------ encoding

    def encode(self, bint compressed=True):
        """The HdrHistogram V2 encoding, compressed with zlib or not. It does not tell what was clamped."""
        counts = bytearray()
        cdef int slot = self.next_recorded(0), end = 0
        while slot >= 0:
            if slot - end == 1:
                append_varint(counts, 0)
            elif slot > end:
                append_varint(counts, end - slot)  # a run of zeros
            append_varint(counts, self.count_of(slot))
            end = slot + 1
            slot = self.next_recorded(end)
        plain = V2_HEADER.pack(
            V2_COOKIE | V2_COOKIE_NIBBLE,
            len(counts),
            0,  # normalizing index offset
            self.significant_figures,
            self.lowest_discernible,
            self.highest_trackable,
            1.0,  # integer to double conversion ratio
        ) + counts
        if not compressed:
            return plain
        deflated = zlib.compress(plain)
        return V2_COMPRESSED_HEADER.pack(V2_COMPRESSED_COOKIE | V2_COOKIE_NIBBLE, len(deflated)) + deflated

    def encode_base64(self):
        """The compressed encoding in base64, as HdrHistogram's log files and tools exchange it."""
        return base64.b64encode(self.encode()).decode("ascii")

    @staticmethod
    def decode(data):
        """The histogram in a V2 encoding: plain or compressed bytes, or base64 of either (str or bytes).

        Safe for data from elsewhere: inflates no further than its own layout can need.
        Raises ValueError for anything that is not exactly one encoded histogram.
        """
        # A memoryview, since bytes() of a number would be as many zeros.
        encoded = data.encode("ascii") if isinstance(data, str) else bytes(memoryview(data))
        if encoded.startswith(BASE64_PREFIX):
            try:
                encoded = base64.b64decode(encoded, validate=True)
            except binascii.Error as error:
                raise ValueError(f"encoded histogram: {error}") from None
        inflater = None
        if len(encoded) >= V2_COMPRESSED_HEADER.size and cookie_of(encoded) == V2_COMPRESSED_COOKIE:
            _, length = V2_COMPRESSED_HEADER.unpack_from(encoded)
            deflated = encoded[V2_COMPRESSED_HEADER.size:]
            if length != len(deflated):
                raise ValueError(f"encoded histogram: {len(deflated)} bytes, the header says {length}")
            inflater = zlib.decompressobj()
            encoded = inflate(inflater, deflated, V2_HEADER.size)
        if len(encoded) < V2_HEADER.size or cookie_of(encoded) != V2_COOKIE:
            raise ValueError("not a V2 encoded histogram")
        _, length, offset, figures, lowest, highest, ratio = V2_HEADER.unpack_from(encoded)
        if offset != 0 or ratio != 1.0:
            raise ValueError(f"encoded histogram: index offset {offset}, value ratio {ratio}: not supported")
        cdef Histogram decoded = Histogram(lowest, highest, figures)
        if inflater is None:
            counts = encoded[V2_HEADER.size:]
        else:
            counts = inflate(inflater, inflater.unconsumed_tail, LONGEST_VARINT * decoded.slots)
            if not inflater.eof and inflate(inflater, inflater.unconsumed_tail, 1):
                raise ValueError("encoded histogram: more counts than its layout has slots")
            if not inflater.eof:
                raise ValueError("encoded histogram: the compressed data is cut short")
        # HdrHistogram_c, which writes only the compressed form, counts the header too.
        if length != len(counts) and (inflater is None or length != len(counts) + V2_HEADER.size):
            raise ValueError(f"encoded histogram: {len(counts)} bytes of counts, the header says {length}")
        decoded.fill(counts)
        if decoded.unrecorded:
            raise MemoryError
        return decoded

    cdef int fill(self, bytes counts) except -1:
        """Add encoded counts, from slot 0 on."""
        cdef const unsigned char* data = counts
        cdef Py_ssize_t size = len(counts), position = 0
        cdef int slot = 0
        cdef int64_t number
        while position < size:
            number = read_varint(data, size, &position)
            if number < 0:
                if number < slot - self.slots:
                    raise ValueError("encoded histogram: more counts than its layout has slots")
                slot += <int>-number
                continue
            if slot == self.slots:
                raise ValueError("encoded histogram: more counts than its layout has slots")
            if number > INT64_MAX - self.count:
                raise ValueError("encoded histogram: its counts add up to more than 2^63")
            if number > 0:
                self.put(self.lowest_of(slot), number)
            slot += 1
        return 0

    # ------------------------------------------------------------------ object

    def __eq__(self, other):
        """Equal layouts and counts. Clamped values count as what they were clamped to."""
        if not isinstance(other, Histogram):
            return NotImplemented
        cdef Histogram that = other
        if not self.same_layout(that) or self.count != that.count:
            return False
        cdef int slot = self.next_recorded(0)
        while slot >= 0 and self.count_of(slot) == that.count_of(slot):
            slot = self.next_recorded(slot + 1)
        return slot < 0  # as many values in all, so `that` has none elsewhere

    def __sizeof__(self):
        cdef size_t held = (<size_t>self.chunks_allocated << self.chunk_magnitude) * sizeof(int64_t)
        if self.directory != NULL:
            held += (self.slots >> self.chunk_magnitude) * sizeof(uint16_t)
        return object.__sizeof__(self) + held

    def __repr__(self):
        clamped = f", clamped_low={self.clamped_low}" if self.clamped_low else ""
        clamped += f", clamped_high={self.clamped_high}" if self.clamped_high else ""
        p50, p99 = self.values_at_percentiles((50, 99))
        return f"Histogram(count={self.count}, min={self.min}, p50={p50}, p99={p99}, max={self.max}{clamped})"


cdef object cookie_of(bytes encoded):
    return int.from_bytes(encoded[:4], "big") & COOKIE_MASK


cdef bytes inflate(object inflater, bytes data, Py_ssize_t limit):
    """At most `limit` bytes out of `data`."""
    try:
        return inflater.decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"encoded histogram: {error}") from None


cdef int append_varint(bytearray out, int64_t number) except -1:
    """Append `number` in HdrHistogram's ZigZag LEB128: 7 bits a byte, low ones first, all 8 in the ninth."""
    cdef uint64_t rest = (<uint64_t>number << 1) ^ <uint64_t>(number >> 63)
    cdef int length = 1
    while rest > 0x7F and length < 9:
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
        length += 1
    out.append(rest)
    return 0


cdef int64_t read_varint(const unsigned char* data, Py_ssize_t size, Py_ssize_t* position) except? -1:
    """The ZigZag LEB128 number at `position`, which moves behind it. Raises ValueError if cut short."""
    cdef uint64_t number = 0
    cdef int shift = 0
    cdef unsigned char byte
    while position[0] < size:
        byte = data[position[0]]
        position[0] += 1
        if shift == 56:
            number |= <uint64_t>byte << shift
        else:
            number |= <uint64_t>(byte & 0x7F) << shift
        if shift == 56 or byte < 0x80:
            return <int64_t>(number >> 1) ^ -<int64_t>(number & 1)
        shift += 7
    raise ValueError("encoded histogram: the last count is cut short")
