// The memory of verified tokens, which makes validating one again cheap. validator.go asks it first.

package apitoken

import (
	"hash/maphash"
	"math/bits"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
)

// Cache keeps verified tokens, so that the second sight of one costs no signature check. It is bounded in bytes;
// a token that was refused is never in it, nor a proof. Each validator has one of its own unless its
// configuration shares one: [Validation.Cache].
type Cache struct {
	seed    maphash.Seed
	mask    uint64
	budget  int64 // bytes of one bucket
	once    sync.Once
	buckets atomic.Pointer[[]bucket] // made at the first token: an idle tenant holds none
}

const cacheWays = 8

// bucket holds the tokens of some hashes. Readers take no lock: a tag that does not fit its entry is caught by
// comparing the text. Its size is a multiple of the processor's lines, a tag beside its entry.
type bucket struct {
	ways  [cacheWays]way
	mu    sync.Mutex // guards writes
	bytes atomic.Int64
	hand  uint32
	_     [40]byte
}

type way struct {
	tag   atomic.Uint64
	entry atomic.Pointer[entry]
}

// entry is a verified token and the course of its verdict. Only version and used change after it was kept. What a repeated
// sight reads comes first: it lies in two lines of the processor's cache. The token's text lies behind the entry, in the same
// memory: the processor fetches both at once, where a pointer to the text would have it wait twice.
type entry struct {
	hash    uint64
	v       *JWTValidator // whose verdict it is: one cache may serve many tenants
	gen     uint64        // of v, read before the verification began
	version atomic.Uint64 // of the rules that it was checked against, read before that check
	exp     int64
	from    int64 // nbf or iat, whichever is later
	length  int32 // of the token
	size    int32
	needs   int64 // the position that its issuer had seen; 0 for issuers without positions
	iss     *trust
	use     *usage.Counter
	used    atomic.Bool
	bound   bool // names a binding, whose proof is checked at each sight
	rule    rules.Subject
	data    tokenData // the Tokens that were handed out share it
	scopes  [4]Scope  // room for those of most tokens
	apart   string    // the text, where it is too long to lie behind
}

// Entries with room for a text behind them, so that each fills a size that memory is given out in, with the eight bytes that
// the runtime puts in front.
type (
	entry376 struct {
		entry
		text [376]byte
	}
	entry504 struct {
		entry
		text [504]byte
	}
	entry760 struct {
		entry
		text [760]byte
	}
	entry1272 struct {
		entry
		text [1272]byte
	}
	entry2296 struct {
		entry
		text [2296]byte
	}
)

// longestBehind is the longest text that lies behind its entry.
const longestBehind = 2296

// newEntry makes an entry with a copy of the token: a caller's string may hold a whole request in memory.
func newEntry(token string) *entry {
	var e *entry
	var text []byte
	switch n := len(token); {
	case n <= 376:
		x := new(entry376)
		e, text = &x.entry, x.text[:]
	case n <= 504:
		x := new(entry504)
		e, text = &x.entry, x.text[:]
	case n <= 760:
		x := new(entry760)
		e, text = &x.entry, x.text[:]
	case n <= 1272:
		x := new(entry1272)
		e, text = &x.entry, x.text[:]
	case n <= longestBehind:
		x := new(entry2296)
		e, text = &x.entry, x.text[:]
	default:
		e = &entry{apart: strings.Clone(token), size: int32(len(token))}
	}
	copy(text, token)
	e.length = int32(len(token))
	e.size += 8 + int32(unsafe.Sizeof(*e)) + int32(len(text))
	return e
}

// token is the text of the token.
func (e *entry) token() string {
	if e.length > longestBehind {
		return e.apart
	}
	return unsafe.String((*byte)(unsafe.Add(unsafe.Pointer(e), unsafe.Sizeof(*e))), e.length)
}

// bucketBytes is how much of the budget one bucket of eight has: tokens of ordinary size fill it with eight.
const bucketBytes = 16 << 10

// NewCache returns a cache that holds at most about bytes of verified tokens, with what was read from them. It takes
// no memory before the first token. Zero or less: it keeps nothing.
func NewCache(bytes int64) *Cache {
	c := &Cache{seed: maphash.MakeSeed()}
	if bytes <= 0 {
		return c
	}
	n := uint64(1)
	if k := uint64(bytes) / bucketBytes; k > 1 {
		n = 1 << (bits.Len64(k) - 1)
	}
	c.mask = n - 1
	c.budget = bytes / int64(n)
	return c
}

// hash is over the token's end: the signature, which differs from token to token.
func (c *Cache) hash(token string) uint64 {
	if c.budget == 0 {
		return 0
	}
	if len(token) > 64 {
		token = token[len(token)-64:]
	}
	return maphash.String(c.seed, token) | 1 // zero tags are empty slots
}

func (c *Cache) find(v *JWTValidator, h uint64, token string) *entry {
	table := c.buckets.Load()
	if table == nil {
		return nil
	}
	for _, n := range [...]uint64{h >> 1, h >> 32} {
		b := &(*table)[n&c.mask]
		for i := range b.ways {
			w := &b.ways[i]
			if w.tag.Load() != h {
				continue
			}
			e := w.entry.Load()
			if e == nil || e.v != v || int(e.length) != len(token) || e.token() != token || e.gen != v.gen.Load() {
				continue
			}
			if !e.used.Load() {
				e.used.Store(true)
			}
			return e
		}
	}
	return nil
}

// keep stores e, in the place of an older entry when its bucket is full.
func (c *Cache) keep(e *entry) {
	e.size += int32(e.weight())
	if c.budget == 0 || int64(e.size) > c.budget {
		return
	}
	c.once.Do(func() {
		t := make([]bucket, c.mask+1)
		c.buckets.Store(&t)
	})
	// Of the two buckets where a token may be, the first takes it until it is half full, as it is looked at first, and then
	// the emptier: a few full ones would cost the tokens in them a signature check each time. Both hold it if two callers
	// verified it at once, which harms nobody.
	table := *c.buckets.Load()
	b := &table[(e.hash>>1)&c.mask]
	if other := &table[(e.hash>>32)&c.mask]; b.bytes.Load() > c.budget/2 && other.bytes.Load() < b.bytes.Load() {
		b = other
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	slot := -1
	for i := range b.ways {
		old := b.ways[i].entry.Load()
		switch {
		case old == nil:
			if slot < 0 {
				slot = i
			}
		case old.hash == e.hash && old.v == e.v && old.token() == e.token():
			b.drop(i)
			slot = i
		case old.gen != old.v.gen.Load() || old.exp < e.from:
			b.drop(i)
			if slot < 0 {
				slot = i
			}
		}
	}
	for slot < 0 || b.bytes.Load()+int64(e.size) > c.budget {
		slot = b.evict()
	}
	b.bytes.Add(int64(e.size))
	b.ways[slot].entry.Store(e)
	b.ways[slot].tag.Store(e.hash)
}

// evict frees the next slot that was not used since the hand passed it last, and returns it.
func (b *bucket) evict() int {
	for {
		i := int(b.hand % cacheWays)
		b.hand++
		e := b.ways[i].entry.Load()
		if e == nil {
			if b.bytes.Load() == 0 {
				return i
			}
			continue
		}
		if e.used.Swap(false) && b.hand%(4*cacheWays) != 0 {
			continue
		}
		b.drop(i)
		return i
	}
}

func (b *bucket) drop(i int) {
	if e := b.ways[i].entry.Load(); e != nil {
		b.bytes.Add(-int64(e.size))
	}
	b.ways[i].tag.Store(0)
	b.ways[i].entry.Store(nil)
}

// weight is an upper bound of what an entry keeps alive beside itself: the buffer that its claims were decoded into (three
// quarters of the token), the host's own claims, texts that were written with escapes and so stand outside the buffer, and the
// structures around them.
func (e *entry) weight() int64 {
	const perScope = int64(unsafe.Sizeof(Scope("")) * 4)
	n := int64((3*e.length+3)/4) + int64(cap(e.data.claim)) + perScope*int64(len(e.data.Scopes))
	r := &e.rule
	texts := len(e.data.Subject) + len(e.data.ID) + len(r.Client) + len(r.Grant) + len(r.Kid) + len(e.data.Binding)
	for _, list := range [...][]string{e.data.Audiences, r.Roles, e.data.Actors, r.Chain} {
		n += int64(unsafe.Sizeof("")) * int64(cap(list))
		for _, s := range list {
			texts += len(s)
		}
	}
	for _, s := range e.data.Scopes {
		texts += len(s)
	}
	n += 2 * int64(texts) // with what growing them left over
	n += int64(unsafe.Sizeof(rules.Principal{})) * int64(cap(r.Actors))
	if y := r.Abroad; y != nil {
		n += int64(unsafe.Sizeof(*y)) + int64(unsafe.Sizeof(rules.Principal{}))*int64(cap(y.Actors))
	}
	return n
}
