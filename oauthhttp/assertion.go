package oauthhttp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/jws"
)

// AssertionIssuer is an issuer whose JWTs vouch for identities (RFC 7523 §2.1): a company's login, a CI system, a
// cluster.
type AssertionIssuer struct {
	Issuer string         // required: compared byte for byte with iss
	Keys   feed.KeySource // required: such as remote.Keys
	// Subject says whose tokens to issue, and what they may hold; required. A subject of another issuer is nobody here
	// until it does. It is asked before an assertion counts as used, so that one for which it cannot decide now may come
	// again. An error refuses, unless it is apitoken.ErrUnavailable.
	Subject func(ctx context.Context, a Assertion) (Identity, error)
	// Client is the registered client for which whoever presents an assertion of this issuer gets tokens without authenticating as
	// a client (RFC 7521 §4.1), as libraries for service accounts do: it bounds their scopes, audiences and lifetimes, and needs the
	// grant type jwt-bearer. A request that names a client must authenticate as it all the same. Empty: every client must.
	Client string
	// MaxLifetime refuses assertions that live longer. Zero: 1 h.
	MaxLifetime time.Duration
	// Reusable takes an assertion until it expires, for issuers whose JWTs are made to be used again, such as a
	// workload's. Without it each is good once, in all processes on the store.
	Reusable bool
	// IDJAG takes identity assertion authorization grants of this issuer, and nothing else
	// (draft-ietf-oauth-identity-assertion-authz-grant): JWTs with typ oauth-id-jag+jwt that name this issuer alone in aud, and in
	// client_id the confidential client that presents them. Their resource and scope are the most that comes of them. Client and
	// Reusable contradict it.
	IDJAG bool
}

// Assertion is a JWT that was verified.
type Assertion struct {
	Issuer, Subject, ID string
	Client              string // who presents it; AssertionIssuer.Client where nobody authenticated
	IssuedAt, ExpiresAt time.Time
	Scopes              apitoken.Scopes // of an ID-JAG: the most that its issuer allows; nil: it does not say
	Resources           []string        // of an ID-JAG: for which resources; nil: it does not say
	Claims              json.RawMessage // the members that no RFC names; nil: none
}

// Identity is who an assertion stands for here.
type Identity struct {
	Subject string   // required; not a client ID
	Scopes  Allowed  // the most it may have, whatever the client asks: Only(…) of them, or All() that the client may hold; zero: none
	Roles   []string // as in apitoken.Request: they give no more than Scopes allows
	Claims  any      // as in apitoken.Request
}

const (
	maxAssertion = 16 << 10
	keysFresh    = 5 * time.Minute
	keysMissing  = 10 * time.Second // between two questions for a kid that is not there
	keysTimeout  = 10 * time.Second
	keysLast     = 24 * time.Hour // the last good ones serve for so long while the issuer is down
)

// assertionIssuer is an AssertionIssuer with its keys.
type assertionIssuer struct {
	AssertionIssuer
	now func() time.Time

	known atomic.Pointer[issuerKeys]
	fetch chan struct{} // holds one: who asks the issuer
}

// issuerKeys are an issuer's keys as they were read last.
type issuerKeys struct {
	keys  []*jws.PublicKey
	read  time.Time // when they were good; zero: never
	tried time.Time // when the issuer was asked last
	err   error     // what came of that
}

// find is the key of that kid, the one of several of different types with which alg may be used; nil: there is none.
func (x *issuerKeys) find(kid, alg string) (found *jws.PublicKey) {
	for _, k := range x.keys {
		if k.KID == kid || kid == "" && len(x.keys) == 1 {
			if k.Allows(alg) {
				return k
			}
			found = k
		}
	}
	return found
}

func newAssertionIssuer(a AssertionIssuer, now func() time.Time) *assertionIssuer {
	x := &assertionIssuer{AssertionIssuer: a, now: now, fetch: make(chan struct{}, 1)}
	x.known.Store(&issuerKeys{})
	return x
}

// key is the issuer's key of that kid for alg, nil if it has none. What is known and fresh costs nothing; else one caller asks
// the issuer, seldom enough, and the others wait for him.
func (a *assertionIssuer) key(ctx context.Context, kid, alg string) (*jws.PublicKey, error) {
	if k, done, err := a.settled(kid, alg); done {
		return k, err
	}
	select {
	case a.fetch <- struct{}{}:
		defer func() { <-a.fetch }()
	case <-ctx.Done():
		return nil, &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "waiting for the keys of " + a.Issuer, Cause: ctx.Err(), RetryAfter: time.Second}
	}
	if k, done, err := a.settled(kid, alg); done {
		return k, err
	}
	next := *a.known.Load()
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), keysTimeout) // for all who wait
	defer cancel()
	doc, err := a.Keys.JWKS(ask, kid)
	var keys []*jws.PublicKey
	if err == nil {
		keys, _, err = jws.ParseJWKS(doc, nil)
	}
	next.tried, next.err = a.now(), err
	if err == nil {
		next.keys, next.read = keys, next.tried
	}
	a.known.Store(&next)
	k, _, err := a.settled(kid, alg)
	return k, err
}

// settled is what can be said without asking the issuer.
func (a *assertionIssuer) settled(kid, alg string) (k *jws.PublicKey, done bool, err error) {
	x := a.known.Load()
	now := a.now()
	k = x.find(kid, alg)
	recent := !x.tried.IsZero() && now.Sub(x.tried) < keysMissing
	switch age := now.Sub(x.read); {
	case k != nil && (age < keysFresh || recent && age < keysLast):
		return k, true, nil // fresh, or the last good ones while the issuer is down
	case !recent:
		return nil, false, nil
	case x.err != nil:
		return nil, true, &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "the keys of " + a.Issuer, Cause: x.err, RetryAfter: time.Second}
	}
	return nil, true, nil
}

func badAssertion(detail string) error {
	return &apitoken.Error{Code: apitoken.ErrInvalidGrant, Detail: "assertion: " + detail} // RFC 7523 §3.1
}

// jwtBearer is RFC 7523 §2.1. There is no refresh token: the issuer vouches anew (RFC 7521 §4.1).
func (h *Handler) jwtBearer(r *http.Request, t *tokenRequest) (*apitoken.Issued, error) {
	if !t.has("assertion") {
		return nil, invalid("The assertion is missing.")
	}
	req, details, err := h.ask(r, t)
	if err != nil {
		return nil, err
	}
	a, from, once, err := h.verifyAssertion(r, t)
	if err != nil {
		return nil, err
	}
	if t.voucher, err = apitoken.NewToken(apitoken.TokenSpec{Issuer: a.Issuer, Subject: a.Subject, ID: a.ID}); err != nil {
		return nil, err
	}
	if req.Audiences, err = a.targets(req.Audiences); err != nil {
		return nil, err
	}
	if err := t.prove(); err != nil {
		return nil, err
	}
	req.Binding = t.binding
	who, err := askHost(r.Context(), h, "AssertionIssuer.Subject", func(ctx context.Context) (Identity, error) { return from.Subject(ctx, a) })
	switch {
	case errors.Is(err, apitoken.ErrUnavailable):
		return nil, err
	case err != nil:
		return nil, &apitoken.Error{Code: apitoken.ErrInvalidGrant, Detail: "AssertionIssuer.Subject refused", Cause: err}
	case who.Subject == "":
		return nil, badAssertion("it stands for nobody here")
	}
	req.Subject = who.Subject
	scopes := req.Scopes
	switch {
	case !t.has("scope"):
		if scopes, err = h.usual(&t.Client); err != nil {
			return nil, err
		}
		if a.Scopes != nil {
			if scopes = h.adapter.Narrow(scopes, a.Scopes); len(scopes) == 0 {
				return nil, errScope
			}
		}
		if !who.Scopes.all {
			scopes = h.adapter.Narrow(scopes, who.Scopes.only)
		}
	case !t.Scopes.Cover(scopes), a.Scopes != nil && !a.Scopes.Cover(scopes),
		!who.Scopes.all && !who.Scopes.only.Cover(scopes): // also where roles would only cut it to nothing
		return nil, errScope
	}
	limit(&req, scopes, who.Roles)
	if who.Claims != nil {
		if req.Claims, err = withDetails(who.Claims, details); err != nil {
			return nil, err
		}
	}
	if err := h.adapter.Check(r.Context(), req); err != nil {
		return nil, err
	}
	// Last, so that what is refused for another reason, or answered "come again", has not spent the assertion.
	if !from.Reusable {
		err := h.adapter.Once(r.Context(), once, a.ExpiresAt)
		if errors.Is(err, apitoken.ErrInvalidRequest) {
			return nil, badAssertion("it was used before")
		}
		if err != nil {
			return nil, err
		}
	}
	t.counted = t.auth.ID != "" // where nobody authenticated, only the assertion says who was refused
	return h.svc.Issue(r.Context(), req)
}

// bearer is the client that stands for whoever presents an assertion and does not say who they are. The assertion is verified before
// the store is asked for the client; jwtBearer verifies it for good.
func (h *Handler) bearer(r *http.Request, f form) (*caller, error) {
	_, from, _, err := h.verifyAssertion(r, &tokenRequest{form: f, caller: &caller{}})
	if err != nil {
		return nil, err
	}
	if from.Client == "" {
		return nil, errNoClient
	}
	c := &caller{method: "none"}
	cert, _ := h.certificate(r)
	c.cert = sumOf(cert)
	c.Client, err = h.svc.Clients.Get(r.Context(), from.Client)
	if errors.Is(err, apitoken.ErrNotFound) {
		return nil, &apitoken.Error{Code: apitoken.ErrInvalidClient, Detail: "AssertionIssuer.Client " + from.Client + " does not exist"}
	}
	return c, err
}

// isAnonymous reports whether a request names no client and carries no credential of one.
func isAnonymous(r *http.Request, f form) bool {
	return len(r.Header.Values("Authorization")) == 0 && !f.has("client_id") && !f.has("client_secret") && !f.has("client_assertion") && !f.has("client_assertion_type")
}

// verifyAssertion checks all of RFC 7523 §3 but single use, for which once is its name.
func (h *Handler) verifyAssertion(r *http.Request, t *tokenRequest) (a Assertion, from *assertionIssuer, once string, err error) {
	text := t.get("assertion")
	var p jws.Token
	if err := jws.Parse(text, maxAssertion, &p); err != nil {
		return a, nil, "", &apitoken.Error{Code: apitoken.ErrInvalidGrant, Detail: "assertion: malformed", Cause: err}
	}
	at := slices.IndexFunc(h.issues, func(x *assertionIssuer) bool { return x.Issuer == p.Claims.Issuer })
	if at < 0 {
		return a, nil, "", badAssertion("its issuer is not trusted")
	}
	from = h.issues[at]
	// Tokens, proofs and other kinds of JWT do not vouch for anybody (RFC 8725 §3.11).
	switch typ := p.Header.Typ; {
	case from.IDJAG && !jws.IsType(typ, typeIDJAG):
		return a, nil, "", badAssertion("typ is not " + typeIDJAG)
	case !from.IDJAG && typ != "" && !jws.IsType(typ, "jwt") && !jws.IsType(typ, "authorization-grant+jwt"):
		return a, nil, "", badAssertion("another kind of JWT")
	}
	if !slices.Contains(h.svc.ProofAlgorithms(), p.Header.Alg) {
		return a, nil, "", badAssertion("signed by an algorithm that is not taken here")
	}
	key, err := from.key(r.Context(), p.Header.KID, p.Header.Alg)
	if err != nil {
		return a, nil, "", err
	}
	if key == nil || !key.Allows(p.Header.Alg) || key.Verify(p.SigningInput, p.Signature) != nil {
		return a, nil, "", badAssertion("signature")
	}
	c, now := &p.Claims, h.now()
	most := from.MaxLifetime
	if most == 0 {
		most = time.Hour
	}
	end := time.Unix(c.Expires, 0)
	ahead := now.Add(h.adapter.Skew()).Unix()
	switch {
	case c.Subject == "" || len(c.Subject) > 255:
		return a, nil, "", badAssertion("sub is missing or too long")
	case !h.isFor(r, &p):
		return a, nil, "", badAssertion("it is not for this issuer")
	case c.Expires == 0 || !now.Before(end):
		return a, nil, "", badAssertion("it has expired")
	case end.Sub(now) > most || c.IssuedAt != 0 && end.Sub(time.Unix(c.IssuedAt, 0)) > most:
		return a, nil, "", badAssertion("it lives too long")
	case c.IssuedAt > ahead || c.NotBefore > ahead:
		return a, nil, "", badAssertion("it is not valid yet")
	case c.Binding != "":
		return a, nil, "", badAssertion("it is bound to a key that is not proved here")
	}
	id := c.ID
	if id == "" {
		sum := sha256.Sum256([]byte(p.SigningInput)) // a signature may be spelled in two ways, what it signs may not
		id = "sha256:" + hex.EncodeToString(sum[:])
	}
	a = Assertion{Issuer: c.Issuer, Subject: c.Subject, ID: c.ID, Client: t.ID, ExpiresAt: end, Claims: slices.Clone(p.PrivateClaims())}
	if c.IssuedAt != 0 {
		a.IssuedAt = time.Unix(c.IssuedAt, 0)
	}
	if from.IDJAG {
		if err := readIDJAG(&p, t, h.svc.Issuer(), &a); err != nil {
			return a, nil, "", err
		}
	}
	return a, from, "jwt-bearer\x00" + c.Issuer + "\x00" + id, nil
}

// isFor reports whether an assertion's aud names this server: its issuer, or its token endpoint as RFC 7523 §3 allows. With FAPI it is
// the issuer and nothing else, as of a client's own assertions.
func (h *Handler) isFor(r *http.Request, p *jws.Token) bool {
	aud := p.Claims.Audience
	if h.fapi {
		one, err := p.Text("aud")
		return err == nil && one == h.svc.Issuer()
	}
	return slices.Contains(aud, h.svc.Issuer()) || slices.Contains(aud, h.base+tokenPath) || slices.Contains(aud, h.urlOf(r, tokenPath))
}
