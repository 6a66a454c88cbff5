// Which opaque tokens are worth a question to their issuer, and how many questions there may be at once.

package issuers

import (
	"crypto/subtle"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// Questions about opaque tokens cost an issuer a call. What tells junk from good keys is the feed's: the issuer's prefix and the keys of
// its API keys' tags. The rest is bounded by lanes.

// Lane is which questions share a limit.
type Lane int

const (
	Genuine Lane = iota // its tag is the issuer's, or the issuer has called it active before
	Strange             // its tag can't be verified here: its root is one that the issuer could not open
	Untold              // an imported key's, if its holder is no stranger that knows its start; or of an issuer that does not say how its keys look
	lanes
	Unheard = lanes // it names a root that our view of the issuer has not: junk, unless the view is old
)

const (
	// Texts about which nothing is known may ask strangeRate questions a second, so ten in any one second.
	strangeRate  = 8.0
	strangeBurst = 2.0
)

var laneSize = [lanes]int{Genuine: 64, Strange: 8, Untold: 48}

// KeyFilter tells an issuer's API keys from junk, from memory. It grows only: answers of processes that lag take nothing away.
type KeyFilter struct {
	ns       string
	prefixes []string
	keys     map[[4]byte][]byte
}

// With is f and what a says; f itself where that is nothing new.
func (f *KeyFilter) With(a *feed.View) *KeyFilter {
	if a.Prefix == "" || len(a.APIKeyTags) == 0 {
		return f
	}
	n := &KeyFilter{ns: a.Namespace, keys: map[[4]byte][]byte{}}
	if f != nil && f.ns == a.Namespace {
		n.prefixes = f.prefixes
		maps.Copy(n.keys, f.keys)
	}
	fresh := f == nil || f.ns != n.ns || !slices.Contains(f.prefixes, a.Prefix)
	for _, t := range a.APIKeyTags {
		if known, ok := n.keys[t.KID]; !ok || len(known) == 0 && len(t.Key) > 0 {
			n.keys[t.KID], fresh = t.Key, true
		}
	}
	if !fresh {
		return f
	}
	if !slices.Contains(n.prefixes, a.Prefix) {
		n.prefixes = append(slices.Clip(n.prefixes), a.Prefix)
	}
	return n
}

// Read says in which lane the question about token belongs; junk: none, since it is no API key of the issuer's.
func (f *KeyFilter) Read(token string) (l Lane, junk string) {
	var key opaque.Key
	if f == nil {
		for range opaque.Find([]byte(token)) {
			return Untold, ""
		}
		return 0, "malformed API key"
	}
	if !slices.ContainsFunc(f.prefixes, func(p string) bool { return opaque.DecodeKeyInto(&key, token, p, opaque.APIKey) == nil }) {
		return 0, "malformed API key"
	}
	mac, ok := f.keys[key.KID]
	switch {
	case !ok:
		return Unheard, ""
	case len(mac) == 0:
		return Strange, ""
	}
	tag := opaque.Tag(mac, opaque.APIKeyLabel, []byte(f.ns), key.ID[:], key.Secret[:])
	if subtle.ConstantTimeCompare(tag[:], key.Tag[:]) != 1 {
		return 0, "an API key that its issuer did not make"
	}
	return Genuine, ""
}

// Gate lets questions of each lane through, as many at once as the lane is wide.
type Gate struct {
	mu     sync.Mutex // guards what follows; a leaf
	asking [lanes]int // questions under way
	budget float64    // questions that strange texts may ask now
	filled time.Time  // when budget was computed
}

// Enter takes a place in a lane. False: there is none.
func (g *Gate) Enter(l Lane) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asking[l] >= laneSize[l] || l == Strange && !g.spend() {
		return false
	}
	g.asking[l]++
	return true
}

// Leave gives the place back.
func (g *Gate) Leave(l Lane) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asking[l]--
}

// spend takes one question from the budget of strange texts. It counts real time. The caller holds mu.
func (g *Gate) spend() bool {
	now := time.Now()
	g.budget = min(strangeBurst, g.budget+now.Sub(g.filled).Seconds()*strangeRate)
	g.filled = now
	if g.budget < 1 {
		return false
	}
	g.budget--
	return true
}
