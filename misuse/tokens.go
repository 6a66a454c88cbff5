package misuse

import (
	"hash/maphash"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/apitoken-go/apitoken"
)

// A tokenTable remembers for each token from which networks and by which programs it was used of late. It is a hash table
// of buckets with eight places, in shards. A token at the place where it was seen last costs two loads; whatever
// moves takes the lock of a shard if that is free, and is not looked at otherwise: nobody waits.

const (
	tokenShards = 256 // by the highest byte of the hash
	tokenPlaces = 8   // of a bucket
	tokenBytes  = 48  // of a place
)

type tokenTable struct {
	seed   maphash.Seed
	most   int // buckets of a shard, a power of two
	shards [tokenShards]tokenShard
	missed atomic.Uint64 // moves that found a lock taken
}

type tokenShard struct {
	table atomic.Pointer[tokenBuckets]
	mu    sync.Mutex // guards all below, and changes of the table
	// suspects are tokens on the way to an alert: of them alone the evidence is kept in clear.
	suspects map[uint64]*suspect
	_        [64]byte // no two locks on one cache line
}

type tokenBuckets []tokenBucket

type tokenBucket struct {
	tag  [tokenPlaces]atomic.Uint64 // hash of the token; 0: free
	last [tokenPlaces]atomic.Uint64 // hash of address and user agent, as used last
	move [tokenPlaces]moves         // guarded by the shard's lock
}

// moves is what is known of one token.
type moves struct {
	now, before  uint64 // networks in this half of the window, and in the one before it
	half         uint32 // which half it is
	agent, other uint32 // the program used last, and another one used before it
	raised       uint16 // half in which an alert was raised, by mark; 0: in none
	back         uint8  // changes to the program before, in this half
	backBefore   uint8
}

// suspect is evidence in clear.
type suspect struct {
	half      uint32
	addresses []netip.Addr
	agents    []string
}

const (
	maxSuspects  = 16 // of a shard
	keptAddress  = 8
	keptAgents   = 4
	keptAgentLen = 128
)

// init takes places for the given number of tokens.
func (t *tokenTable) init(seed maphash.Seed, tokens int) {
	t.seed = seed
	t.most = 1
	for t.most*tokenPlaces*tokenShards < tokens {
		t.most *= 2
	}
	for i := range t.shards {
		b := make(tokenBuckets, 1)
		t.shards[i].table.Store(&b)
	}
}

// bytes is the memory that the table holds now.
func (t *tokenTable) bytes() int64 {
	n := int64(0)
	for i := range t.shards {
		n += int64(len(*t.shards[i].table.Load())) * tokenPlaces * tokenBytes
	}
	return n
}

// at is the bucket of h.
func (b tokenBuckets) at(h uint64) *tokenBucket { return &b[h&uint64(len(b)-1)] }

// place mixes where and by what a token is used into one number, never 0. Of a user agent it takes the length and what
// stands in the middle and at the end: two that differ elsewhere alone are of one program.
func (t *tokenTable) place(o *apitoken.Origin) uint64 {
	h := uint64(0)
	if s := o.UserAgent; len(s) >= 8 {
		h = (uint64(len(s)) ^ text64(s[len(s)/2-4:])) * 0x9e3779b97f4a7c15
		h ^= text64(s[len(s)-8:])
	} else if s != "" {
		h = maphash.String(t.seed, s)
	}
	if o.Address.IsValid() {
		h = h*0xff51afd7ed558ccd ^ maphash.Comparable(t.seed, o.Address)
	}
	return h | 1
}

// text64 is the first eight bytes of s.
func text64(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// settled reports that the token was seen before and is where it was.
func (t *tokenTable) settled(h, place uint64) bool {
	b := t.shards[h>>56].table.Load().at(h)
	for i := range b.tag {
		if b.tag[i].Load() == h {
			return b.last[i].Load() == place
		}
	}
	return false
}

// moved notes that the token h came from elsewhere, and tells whether that is too many networks or changes of program.
func (t *tokenTable) moved(h, place uint64, o *apitoken.Origin, half uint32, limits moveLimits) (found moveFound) {
	s := &t.shards[h>>56]
	if !s.mu.TryLock() {
		t.missed.Add(1)
		return found
	}
	defer s.mu.Unlock()
	b, i := s.find(h, half, t.most)
	m := &b.move[i]
	b.last[i].Store(place)
	if d := half - m.half; d != 0 {
		if d == 1 {
			m.before, m.backBefore = m.now, m.back
		} else {
			m.before, m.backBefore = 0, 0
		}
		m.now, m.back, m.half = 0, 0, half
	}
	if o.Address.IsValid() {
		m.now |= 1 << (mix(network(o.Address, 24, 48)) & 63)
	}
	if o.UserAgent != "" && limits.back > 0 {
		switch x := t.program(o.UserAgent); x {
		case m.agent:
		case m.other:
			m.agent, m.other = m.other, m.agent
			m.back = min(m.back, 254) + 1
		default:
			m.agent, m.other = x, m.agent
		}
	}
	found.networks = distinct(m.now | m.before)
	found.back = int(m.back) + int(m.backBefore)
	tooMany := limits.networks > 0 && found.networks >= limits.networks
	atOnce := limits.back > 0 && found.back >= limits.back
	if limits.networks > 0 && found.networks*2 >= limits.networks || found.back > 0 || tooMany || atOnce {
		x := s.suspect(h, o, half)
		if (tooMany || atOnce) && m.raised != mark(half) {
			m.raised = mark(half)
			found.tooMany, found.atOnce = tooMany, atOnce
			found.addresses, found.agents = slices.Clone(x.addresses), slices.Clone(x.agents)
		}
	}
	return found
}

// moveLimits are the thresholds for one token; 0: off.
type moveLimits struct{ networks, back int }

type moveFound struct {
	networks, back  int
	tooMany, atOnce bool // a threshold is passed, for the first time in this half of the window
	addresses       []netip.Addr
	agents          []string
}

// find is h's place, made if need be: in a larger table while it may grow, else in place of whoever has not moved longest.
func (s *tokenShard) find(h uint64, half uint32, most int) (*tokenBucket, int) {
	for {
		table := *s.table.Load()
		b := table.at(h)
		free, oldest := -1, 0
		for i := range b.tag {
			switch b.tag[i].Load() {
			case h:
				return b, i
			case 0:
				free = i
			}
			if half-b.move[i].half > half-b.move[oldest].half {
				oldest = i
			}
		}
		if free < 0 && len(table) < most {
			s.grow(table)
			continue
		}
		if free < 0 {
			free = oldest
			b.last[free].Store(0)
		}
		b.move[free] = moves{half: half}
		b.tag[free].Store(h)
		return b, free
	}
}

// grow doubles the table. Readers of the old one see what was.
func (s *tokenShard) grow(old tokenBuckets) {
	table := make(tokenBuckets, 2*len(old))
	for j := range old {
		for i := range old[j].tag {
			h := old[j].tag[i].Load()
			if h == 0 {
				continue
			}
			b := table.at(h)
			for k := range b.tag {
				if b.tag[k].Load() == 0 {
					b.tag[k].Store(h)
					b.last[k].Store(old[j].last[i].Load())
					b.move[k] = old[j].move[i]
					break
				}
			}
		}
	}
	s.table.Store(&table)
}

// suspect keeps o as evidence about h.
func (s *tokenShard) suspect(h uint64, o *apitoken.Origin, half uint32) *suspect {
	x := s.suspects[h]
	if x == nil {
		if s.suspects == nil {
			s.suspects = map[uint64]*suspect{}
		}
		if len(s.suspects) >= maxSuspects {
			s.forget(half)
		}
		x = &suspect{}
		s.suspects[h] = x
	}
	if half-x.half > 1 {
		x.addresses, x.agents = nil, nil
	}
	x.half = half
	if o.Address.IsValid() {
		a := o.Address.WithZone("")
		x.addresses = slices.DeleteFunc(x.addresses, func(b netip.Addr) bool { return a == b })
		if len(x.addresses) == keptAddress {
			x.addresses = slices.Delete(x.addresses, 0, 1)
		}
		x.addresses = append(x.addresses, a)
	}
	if o.UserAgent != "" {
		a := cut(o.UserAgent, keptAgentLen)
		x.agents = slices.DeleteFunc(x.agents, func(b string) bool { return a == b })
		if len(x.agents) == keptAgents {
			x.agents = slices.Delete(x.agents, 0, 1)
		}
		x.agents = append(x.agents, strings.Clone(a))
	}
	return x
}

// forget makes room for a suspect: that of the oldest half goes.
func (s *tokenShard) forget(half uint32) {
	var oldest uint64
	age, any := uint32(0), false
	for h, x := range s.suspects {
		if d := half - x.half; !any || d > age || d == age && h < oldest {
			oldest, age, any = h, d, true
		}
	}
	delete(s.suspects, oldest)
}

// program is a user agent without its numbers: a new release of the same program is the same program.
func (t *tokenTable) program(agent string) uint32 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	for i := 0; i < len(agent); {
		j := i
		for j < len(agent) && (agent[j] < '0' || agent[j] > '9') {
			j++
		}
		_, _ = h.WriteString(agent[i:j])
		for j < len(agent) && (agent[j] >= '0' && agent[j] <= '9' || agent[j] == '.' || agent[j] == '_') {
			j++
		}
		i = j
	}
	return uint32(h.Sum64()) | 1
}

// network is the part of a that its holder keeps when a changes a little: the first v4 or v6 bits.
func network(a netip.Addr, v4, v6 int) uint64 {
	a = a.Unmap()
	x := a.As16()
	if a.Is4() {
		return be64(x[8:]) >> (32 - v4)
	}
	return be64(x[:8])>>(64-v6) | 1<<63
}

// distinct estimates how many networks set these bits, each one of 64 at random, so that some share one (linear counting):
// exact to one below eight, and to a tenth or so around thirty.
func distinct(set uint64) int {
	n := bits.OnesCount64(set)
	return int(-64 * math.Log1p(-float64(min(n, 63))/64))
}

func be64(b []byte) uint64 {
	_ = b[7]
	return uint64(b[7]) | uint64(b[6])<<8 | uint64(b[5])<<16 | uint64(b[4])<<24 | uint64(b[3])<<32 | uint64(b[2])<<40 | uint64(b[1])<<48 | uint64(b[0])<<56
}

// mix spreads x over all bits (the finalizer of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// cut cuts a client's text to n bytes.
func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
