// Checker: it decides whether a client is who it says, whichever way it proves that, and makes generated secrets.

package clientauth

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/throttle"
)

// Config is what a Checker stands on.
type Config struct {
	Namespace func() string // part of every hash

	// Seal sets the tag of a fresh secret and returns its text.
	Seal func(k *opaque.Key) string
	// Read reads the text of a generated secret; nil: it has another form. ours: its tag is this service's.
	Read func(ctx context.Context, text string) (k *opaque.Key, ours bool, err error)
	// Ended reports whether a rule has ended the generated secret with this ID.
	Ended func(id string) bool
	// Once is nil for the first caller in any process with an id, and fault.InvalidRequest for all others until then.
	Once func(ctx context.Context, id string, until time.Time) error

	Issuer string        // must be the aud of an assertion
	Algs   []string      // by which it may be signed
	Ahead  time.Duration // how far the client's clock may be ahead
	FAPI   bool          // its aud is the issuer as one string, never an endpoint
	Now    func() time.Time
}

// Checker checks what clients present, and makes their secrets. Use New.
type Checker struct {
	cfg      Config
	failures throttle.Table // by client and source
	queue    *queue
	key      [32]byte // of this process, for marks
}

// New returns a Checker that runs slow hashes on half of the processors.
func New(c Config) *Checker {
	x := &Checker{cfg: c, queue: newQueue()}
	rand.Read(x.key[:])
	return x
}

// Attempt is what somebody presents as a client's.
type Attempt struct {
	Client      string // its ID
	Source      string // of the request, see source.Of
	Secret      string
	Assertion   string
	Endpoints   []string // URLs that an assertion may be for, besides the issuer
	Certificate *x509.Certificate
	Verified    bool // the certificate's chain, up to a CA that names clients
}

func (a *Attempt) name() throttle.Name { return throttle.Name{Who: a.Client, From: a.Source} }

// Proof says by which secret a client was convinced; the zero Proof: by something else.
type Proof struct {
	Hash [32]byte
	Made bool // by us: the hash stays the same as long as the secret does
}

// Failed reports whether a client has failed so often, from that source, that nothing slow is done for it.
func (c *Checker) Failed(a *Attempt) bool { return c.failures.Over(a.name(), c.cfg.Now()) }

// Fail counts a failure. False: there were too many.
func (c *Checker) Fail(a *Attempt) bool { return c.failures.Take(a.name(), c.cfg.Now()) }

// nobody has the shape of a confidential client and no secret that fits: unknown IDs walk the same path.
var nobody = &Credentials{}

// Prove reports whether a is a credential of the client that has x, which is nil for a client that this process does not know. Of a
// public client the ID alone is enough. noneChosen: no client has a secret that a host chose.
func (c *Checker) Prove(ctx context.Context, x *Credentials, a *Attempt, noneChosen bool) (Proof, bool, error) {
	switch {
	case a.Secret != "":
		return c.secret(ctx, x, a, noneChosen)
	case a.Assertion == "" && x != nil && x.Public:
		return Proof{}, true, nil
	case a.Assertion != "":
		ok, err := c.assertion(ctx, x, a)
		return Proof{}, ok, err
	case a.Certificate != nil:
		return Proof{}, c.certificate(x, a), nil
	}
	return c.secret(ctx, x, a, noneChosen)
}

// secret compares a secret with the client's live ones.
func (c *Checker) secret(ctx context.Context, x *Credentials, a *Attempt, noneChosen bool) (Proof, bool, error) {
	if x == nil || x.Public {
		x = nobody
	}
	var room [MaxLive]Secret // on the stack: an allocation would show in time that the client exists
	live := AppendLive(room[:0], x.Secrets, c.cfg.Now())

	// Only what we may have made is ours to hash fast: a host may have chosen a secret that looks like it, or taken that of a
	// service with another prefix.
	var fits int
	g, err := c.Read(ctx, a.Secret)
	switch {
	case err != nil:
		return Proof{}, false, err
	case g.Key != nil:
		fits = Match(live, c.Verifier(a.Client, g))
	default:
		fits, err = c.chosen(ctx, guess{name: a.name(), secret: a.Secret, live: live, proved: &x.proved, skip: noneChosen})
	}
	if err != nil || fits < 0 {
		return Proof{}, false, err
	}
	return Proof{Hash: live[fits].Hash, Made: !live[fits].Chosen()}, !c.Ended(&live[fits]), nil
}

// certificate checks the certificate of a TLS connection (RFC 8705 §2).
func (c *Checker) certificate(x *Credentials, a *Attempt) bool {
	if x == nil || !valid(a.Certificate, c.cfg.Now()) {
		return false
	}
	switch x.Method {
	case methodTLS:
		return a.Verified && named(a.Certificate, x.TLSName)
	case methodSelfSigned:
		return slices.Contains(x.Certs, sha256.Sum256(a.Certificate.Raw))
	}
	return false
}

// Generated is a text that has the form of a generated secret. Where it is not Ours another service may have made it, whose secret a
// host declares here.
type Generated struct {
	*opaque.Key
	Ours bool
}

// Read reads a text. A Generated without a Key: it has another form.
func (c *Checker) Read(ctx context.Context, text string) (g Generated, err error) {
	g.Key, g.Ours, err = c.cfg.Read(ctx, text)
	return g, err
}

// Make makes a secret of 256 random bits for a client, and its verifier.
func (c *Checker) Make(client string) (text string, _ Secret) {
	now := c.cfg.Now()
	k := opaque.Key{ID: opaque.NewID(now)}
	rand.Read(k.Secret[:])
	text = c.cfg.Seal(&k)
	return text, Secret{ID: k.ID[:], Hash: c.Verifier(client, Generated{&k, true}), Created: now.UnixMilli()}
}

// MakeRegistration is Make for a registration token.
func (c *Checker) MakeRegistration(client string) (text string, _ Secret) {
	return c.Make(registrationOf(client))
}

const (
	labelOurs    = "cs1h"
	labelForeign = "cs1f"
)

// Verifier is the hash that is kept of g as a client's secret. The tag of what is ours was verified, and stays out. We can't verify
// that of another service's secret, so its hash covers every byte.
func (c *Checker) Verifier(client string, g Generated) [32]byte {
	ns := []byte(c.cfg.Namespace())
	if g.Ours {
		return opaque.Hash(labelOurs, ns, []byte(client), g.ID[:], g.Secret[:])
	}
	return opaque.Hash(labelForeign, ns, []byte(client), g.KID[:], g.ID[:], g.Secret[:], g.Tag[:])
}

// Registration is Verifier for a registration token.
func (c *Checker) Registration(client string, g Generated) [32]byte {
	return c.Verifier(registrationOf(client), g)
}

// registrationOf is a name that no client has, under which the hash of a registration token is made: it never passes
// for the client's secret, nor the other way round.
func registrationOf(client string) string { return "registration\x00" + client }

// Ended reports whether a rule has ended a generated secret.
func (c *Checker) Ended(x *Secret) bool {
	return len(x.ID) == len(opaque.ID{}) && c.cfg.Ended(opaque.ID(x.ID).String())
}

// Leaked reports whether text is a secret of the client's that was found in a leak: one that a rule has ended, or one of the hashes.
func (c *Checker) Leaked(ctx context.Context, client, text string, hashes [][]byte) bool {
	g, err := c.Read(ctx, text)
	if g.Key == nil || err != nil {
		return false // Take asks again, and reports the error
	}
	hash := c.Verifier(client, g)
	return c.cfg.Ended(g.ID.String()) || slices.ContainsFunc(hashes, func(h []byte) bool { return bytes.Equal(h, hash[:]) })
}

// CheckBrought refuses what no host may bring as a secret: fault.InvalidRequest.
func CheckBrought(client, text string) error {
	if len(text) < minChosen {
		return fault.Fail(fault.InvalidRequest, "a secret of client %q is under %d bytes", client, minChosen)
	}
	_, _, err := parse(text)
	return err
}

// HashChosen hashes a secret that a host chose, for its configuration files. fault.InvalidRequest: it is too short, or was generated.
func HashChosen(text string) (string, error) {
	if len(text) < minChosen {
		return "", fault.Fail(fault.InvalidRequest, "a secret under %d bytes", minChosen)
	}
	for range opaque.Find([]byte(text)) {
		return "", fault.Fail(fault.InvalidRequest, "a generated secret is not hashed by its host")
	}
	x, err := newChosen(text, time.Now())
	return x.text(), err
}

// Take makes the verifier of a secret that a host brings: what HashChosen has made of it, a plain hash if it was generated, else a slow
// one.
func (c *Checker) Take(ctx context.Context, client, text string) (Secret, error) {
	now := c.cfg.Now()
	if x, ok, err := parse(text); ok {
		x.Created = now.UnixMilli()
		return x, err
	}
	g, err := c.Read(ctx, text)
	switch {
	case err != nil:
		return Secret{}, err
	case g.Key != nil:
		return Secret{ID: g.ID[:], Hash: c.Verifier(client, g), Created: now.UnixMilli()}, nil
	}
	return newChosen(text, now)
}

// Same reports whether these verifiers of a client are those of texts that a host brings. Each slow one takes a tenth of a second.
func (c *Checker) Same(ctx context.Context, client string, live []Secret, texts []string) bool {
	if len(live) != len(texts) {
		return false
	}
	for _, text := range texts {
		known, hashed, err := parse(text)
		if err != nil || !slices.ContainsFunc(live, func(x Secret) bool {
			return hashed && x.equal(&known) || !hashed && c.fits(ctx, client, &x, text)
		}) {
			return false
		}
	}
	return true
}

// fits compares in constant time.
func (c *Checker) fits(ctx context.Context, client string, x *Secret, text string) bool {
	if x.Chosen() {
		return x.fits(text)
	}
	g, err := c.Read(ctx, text)
	if err != nil || g.Key == nil {
		return false
	}
	got := c.Verifier(client, g)
	return subtle.ConstantTimeCompare(got[:], x.Hash[:]) == 1
}
