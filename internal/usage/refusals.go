// Refusals, counted in memory of a fixed size until they are written.

package usage

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/apitoken-go/apitoken/internal/fault"
)

// Tally counts refusals, until Flush writes them. It has one mutex, a leaf.
type Tally struct {
	Log *slog.Logger // hears of a refusal that no store takes

	mu     sync.Mutex // guards all below
	counts map[Refusal]*Refused
	claims int // of counts, those of callers who proved nothing
}

// Refusal is what is counted together. Who is refused is named only when the token was verified.
type Refusal struct {
	Kind, Reason                  string
	Subject, Client, Token, Grant string
	Issuer                        string // of Subject and Token; empty: our own
	Claimed                       string // the registered client that the caller said to be and did not prove: whom it was aimed at, not who it was
}

// Named reports whether r says who was refused.
func (r *Refusal) Named() bool {
	return r.Subject != "" || r.Client != "" || r.Token != "" || r.Grant != "" || r.Claimed != ""
}

// stranger reports whether r names nobody but a client that the caller only said to be.
func (r *Refusal) stranger() bool {
	return r.Claimed != "" && r.Subject == "" && r.Client == "" && r.Token == "" && r.Grant == ""
}

// Refused is how often something was refused.
type Refused struct {
	Refusal
	N         int
	Addresses []netip.Addr // the first few that were seen
	Whys      []string     // the first few limits that said no, in words; not part of the key, so that no caller can multiply it
}

const (
	maxRefusals = 128 // distinct ones between two flushes; the rest are counted without a name
	maxClaims   = 32  // of them for callers who proved nothing, so that strangers never take the room of the known
	maxWhys     = 4
)

// Count counts one refusal from an address, which may be the zero one. why is the limit that said no; empty: none.
func (t *Tally) Count(r Refusal, why string, from netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count(r, 1, from).add(why)
}

// Len is how many distinct refusals wait to be written.
func (t *Tally) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.counts)
}

// add notes why, if it is new and there is room.
func (c *Refused) add(why string) {
	if why != "" && len(c.Whys) < maxWhys && !slices.Contains(c.Whys, why) {
		c.Whys = append(c.Whys, strings.Clone(why))
	}
}

// count adds n to what is counted as r, and returns it. The caller holds mu.
func (t *Tally) count(r Refusal, n int, from netip.Addr) *Refused {
	c := t.counts[r]
	if c == nil && (len(t.counts) >= maxRefusals || r.stranger() && t.claims >= maxClaims) {
		r = Refusal{Kind: r.Kind, Reason: r.Reason}
		c = t.counts[r]
	}
	if c == nil {
		if t.counts == nil {
			t.counts = map[Refusal]*Refused{}
		}
		// The strings belong to a cached token or to a request: clone, so that neither is kept.
		r.Subject, r.Client, r.Token, r.Grant = strings.Clone(r.Subject), strings.Clone(r.Client), strings.Clone(r.Token), strings.Clone(r.Grant)
		r.Issuer, r.Claimed = strings.Clone(r.Issuer), strings.Clone(r.Claimed)
		c = &Refused{Refusal: r}
		t.counts[r] = c
		if r.stranger() {
			t.claims++
		}
	}
	c.N += n
	if from.IsValid() && len(c.Addresses) < maxAddresses && !slices.Contains(c.Addresses, from) {
		c.Addresses = append(c.Addresses, from.WithZone(""))
	}
	return c
}

func (t *Tally) take() []*Refused {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.counts) == 0 {
		return nil
	}
	out := make([]*Refused, 0, len(t.counts))
	for _, c := range t.counts {
		out = append(out, c)
	}
	t.counts, t.claims = map[Refusal]*Refused{}, 0
	return out
}

func (t *Tally) giveBack(list []*Refused) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range list {
		again := t.count(c.Refusal, c.N, netip.Addr{})
		for _, a := range c.Addresses {
			t.count(c.Refusal, 0, a)
		}
		for _, why := range c.Whys {
			again.add(why)
		}
	}
}

// Flush hands out what was counted, at most sixteen at once, which write puts into one change. After an error what was not written
// is counted on; what no store takes, InvalidRequest, is dropped.
func (t *Tally) Flush(ctx context.Context, write func(context.Context, []*Refused) error) error {
	list := t.take()
	for len(list) > 0 {
		n := min(len(list), flushBatch)
		err := write(ctx, list[:n])
		if n > 1 && errors.Is(err, fault.InvalidRequest) {
			n, err = 1, write(ctx, list[:1]) // one of them can never be written: find it, and keep the others
		}
		switch {
		case errors.Is(err, fault.InvalidRequest):
			t.drop(list[0], err)
		case err != nil:
			t.giveBack(list)
			return err
		}
		list = list[n:]
	}
	return nil
}

// drop gives up a refusal that no store takes. It is counted on without the names that may be why.
func (t *Tally) drop(x *Refused, err error) {
	t.Log.Error("apitoken: a refusal that cannot be recorded was dropped", "type", x.Kind, "reason", x.Reason, "count", x.N, "named", x.Named(), "error", err)
	if x.Named() || len(x.Whys) > 0 {
		t.giveBack([]*Refused{{Refusal: Refusal{Kind: x.Kind, Reason: x.Reason}, N: x.N, Addresses: x.Addresses}})
	}
}
