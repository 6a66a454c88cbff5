// Ring: its parts, the signing key in use, the keys as they are listed, and those of a host that are imported.

package keyring

import (
	"context"
	"crypto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// Shown is a key's public side.
type Shown struct {
	ID, Algorithm, Audience, State string
	Since, Until                   time.Time // of the state; Until zero: not known yet
	Outside                        bool
	JWK                            []byte // nil for HS256
}

// Ring is the common ring, and those of the audiences that have one of their own.
type Ring struct {
	c Config

	mu      sync.Mutex // guards the maps, and the making of rings from them
	records map[string]knownSigner
	roots   map[[4]byte]*rootSecret
	shut    map[[4]byte]store.Record // roots that were not opened yet
	outside map[string]*jws.Signer   // imported into this process
	lock    store.Version            // of the ring's lock record
	sealed  int64                    // since when the store holds no root in clear, Unix ms; 0: it may. Never forgotten
	ring    atomic.Pointer[ring]
	looked  atomic.Pointer[time.Time] // when the store was asked for a root last because somebody named it
	kick    chan struct{}
}

// knownSigner is a record that was read and found authentic, with its private half where this process may have it.
type knownSigner struct {
	rec     keyRecord
	version store.Version
	expires int64 // of the record
	pos     int64 // where its record first stood in the order of changes: whose view reaches there knows the key
	public  *jws.PublicKey
	signer  *jws.Signer // nil: outside, and not imported here; or compromised
}

// ring is what readers see: it never changes.
type ring struct {
	keys  []ringKey     // by the time from which each signs
	lanes []lane        // the same keys by whom they sign for: the common one first, then by audience
	roots []*rootSecret // by age, the oldest first; none only before ensure
	by    map[[4]byte]*rootSecret
	pos   int64 // of its newest key
	// before is the ring of the last complete view, while the view does not reach pos yet: a token that is stamped with a
	// view must not be signed with a key that this view does not know.
	before *ring
}

// lane is a ring in the ring: of the keys in it one is active. Each configured audience has one, keys or not.
type lane struct {
	audience string // "": of all that have none of their own
	alg      string // of the keys that are made here; "": this process makes none, nor signs with them
	keys     []ringKey
}

type ringKey struct {
	kid string
	knownSigner
}

// keyRecord is a signing key as it is stored. The MAC is under the root secret: whoever can write the store can
// still not add a key. The private half is sealed under the root secret too.
type keyRecord struct {
	V           int     `json:"v"`
	Alg         string  `json:"alg"`
	JWK         string  `json:"jwk,omitempty"`
	Sealed      []byte  `json:"sealed,omitempty"`
	Outside     bool    `json:"outside,omitempty"`
	Created     int64   `json:"created"`        // Unix ms, as all times here
	Activates   int64   `json:"activates"`      // signs from then on
	Took        int64   `json:"took,omitempty"` // signs since, where it took the place of a compromised key: Activates is that key's
	Ends        int64   `json:"ends,omitempty"` // signs no more from then on, though no other has taken its place
	Compromised int64   `json:"compromised,omitempty"`
	Root        [4]byte `json:"root"`
	MAC         []byte  `json:"mac"`
}

// lockRecord serializes changes of the ring: of two processes that want to rotate, one does.
type lockRecord struct {
	V int   `json:"v"`
	N int64 `json:"n"`
	// Sealed is since when no root lies in clear, Unix ms: a process without a Sealer, which may have been started before, writes
	// none any more, and one that seals what lies in clear takes none any more.
	Sealed int64 `json:"sealed,omitempty"`
}

var (
	keyForm  = record.Form[keyRecord]{Kind: store.KindKey, Check: func(rec *keyRecord) error { return commit.First(rec.V) }}
	lockForm = record.Form[lockRecord]{Kind: store.KindKey}
)

const (
	keyLock   = "ring"
	keyPrefix = "sign."

	// leadMost is how long a key is published before it signs: validators elsewhere read key sets every five minutes.
	leadMost    = 15 * time.Minute
	keyTick     = 30 * time.Second // how often the ring looks at the clock
	keyTries    = 8
	lookEvery   = time.Second     // for a root secret that somebody names
	signTimeout = 5 * time.Second // of a key outside, when the caller sets no deadline
)

// New makes an empty Ring. Records come by Apply; Ensure makes it usable.
func New(c Config) *Ring {
	k := &Ring{c: c, kick: make(chan struct{}, 1), roots: map[[4]byte]*rootSecret{}, outside: map[string]*jws.Signer{}}
	k.records, k.shut = map[string]knownSigner{}, map[[4]byte]store.Record{}
	k.ring.Store(&ring{lanes: k.lanes(nil)})
	return k
}

// Signing is the key that signs now.
type Signing struct {
	KID    string
	signer *jws.Signer
	slow   bool // outside
}

// Sign makes an access token of the claims.
func (x *Signing) Sign(ctx context.Context, c *jws.Claims, private []byte) (string, error) {
	var buf [1024]byte
	return x.SignText(ctx, jws.AccessType, jws.AppendClaims(buf[:0], c, private))
}

func (x *Signing) SignText(ctx context.Context, typ string, payload []byte) (string, error) {
	if x.slow {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, signTimeout)
		defer cancel()
		payload = slices.Clone(payload) // off the caller's stack only where it must be
	}
	text, err := x.signer.Sign(ctx, typ, payload)
	if err != nil {
		return "", fault.NoAnswer(err, "sign with key "+x.KID)
	}
	return text, nil
}

// List returns the ring, the newest key first; behind the common keys those of each audience that has its own.
func (k *Ring) List(ctx context.Context) ([]Shown, error) {
	if err := k.refresh(ctx); err != nil {
		return nil, err
	}
	var out []Shown
	k.Each(k.now(), func(x *ringKey, state string, since, until int64) { out = append(out, x.shown(state, since, until)) })
	return out, nil
}

func (x *ringKey) shown(state string, since, until int64) Shown {
	s := Shown{ID: x.kid, Algorithm: x.rec.Alg, Audience: x.audience(), State: state, Since: time.UnixMilli(since), Outside: x.rec.Outside}
	if until != 0 {
		s.Until = time.UnixMilli(until)
	}
	if x.rec.JWK != "" {
		s.JWK = []byte(x.rec.JWK)
	}
	return s
}

// JWKS is the published set (RFC 7517): the public keys that are next, active or retired, in order of their IDs. It makes
// SigningKeys a feed.KeySource; missing is not looked at.
func (k *Ring) JWKS() []byte {
	var list []string
	k.Each(k.now(), func(x *ringKey, state string, _, _ int64) {
		if state != "compromised" && x.rec.JWK != "" {
			list = append(list, x.kid+"\x00"+x.rec.JWK)
		}
	})
	slices.Sort(list)
	doc := []byte(`{"keys":[`)
	for i, x := range list {
		if i > 0 {
			doc = append(doc, ',')
		}
		_, jwk, _ := strings.Cut(x, "\x00")
		doc = append(doc, jwk...)
	}
	return append(doc, `]}`...)
}

// ImportFor is Import of a key that signs for one audience of Config.AudienceAlgorithms alone. ErrInvalidRequest also where the
// audience is not among them.
func (k *Ring) ImportFor(ctx context.Context, audience string, s crypto.Signer, algorithm string) (Shown, error) {
	if k.ring.Load().lane(audience).alg == "" {
		return Shown{}, fault.Fail(fault.InvalidRequest, "audience %q is not in Config.AudienceAlgorithms", audience)
	}
	if s == nil {
		return Shown{}, fault.Fail(fault.InvalidRequest, "no signer")
	}
	signer, err := jws.NewSigner("", algorithm, s, true)
	if err != nil {
		return Shown{}, &fault.Error{Code: fault.InvalidRequest, Detail: "signer", Cause: err}
	}
	tctx, cancel := context.WithTimeout(ctx, signTimeout)
	_, err = signer.Sign(tctx, jws.AccessType, []byte(`{}`)) // verified: it does sign, with this key
	cancel()
	if err != nil {
		return Shown{}, fault.NoAnswer(err, "the signer does not sign")
	}
	kid := signer.Public.KID
	signer.Public.Audience = audience
	err = k.change(ctx, func(c *commit.Change, r *ring) error {
		now, lead := k.now().UnixMilli(), k.lead().Milliseconds()
		l := r.lane(audience)
		newest := l.newest()
		for i := range r.keys {
			x := &r.keys[i]
			if x.kid != kid {
				continue
			}
			switch {
			case x.rec.Compromised != 0:
				return fault.Fail(fault.InvalidRequest, "key %s was declared compromised", kid)
			case x.rec.Alg != signer.Public.Alg:
				return fault.Fail(fault.InvalidRequest, "key %s is registered for %s", kid, x.rec.Alg)
			case !x.rec.Outside:
				return fault.Fail(fault.InvalidRequest, "key %s is the ring's own", kid)
			case x.audience() != audience:
				return fault.Fail(fault.InvalidRequest, "key %s signs for another audience", kid)
			case x.kid != newest.kid && x.rec.Activates <= now && newest.rec.Activates <= now:
				return fault.Fail(fault.InvalidRequest, "key %s was replaced", kid)
			}
			return nil
		}
		if err := k.c.Ready(); err != nil {
			return err
		}
		rec := &keyRecord{V: 1, Alg: signer.Public.Alg, Outside: true, Created: now, Activates: now + lead}
		if newest != nil && k.young(r) {
			rec.Activates = max(now, newest.rec.Activates+1)
		}
		if newest != nil && newest.rec.Activates >= rec.Activates {
			rec.Activates = newest.rec.Activates + 1
		}
		if _, err := rec.describe(signer.Public); err != nil {
			return &fault.Error{Code: fault.InvalidRequest, Detail: "signer", Cause: err}
		}
		k.prove(k.current(r), kid, rec)
		return k.add(ctx, c, l, kid, rec, "imported")
	})
	if err != nil {
		return Shown{}, err
	}
	k.mu.Lock()
	k.outside[kid] = signer
	if x, ok := k.records[kid]; ok {
		x.signer = signer
		k.records[kid] = x
	}
	k.rebuild()
	k.mu.Unlock()
	var out Shown
	k.Each(k.now(), func(x *ringKey, state string, since, until int64) {
		if x.kid == kid {
			out = x.shown(state, since, until)
		}
	})
	return out, nil
}

// Algorithm is that of the key.
func (x *Signing) Algorithm() string { return x.signer.Public.Alg }
