// Which client calls, in Clients.caller, once in front of each call; internal/clientauth checks secrets, assertions, certificates.

package apitoken

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/redirect"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// How clients prove who they are without a secret: by a JWT that they sign (RFC 7523), or by the certificate of their
// TLS connection (RFC 8705).

// Methods of client authentication, by the names of RFC 8414's registry.
const (
	authBasic      = "client_secret_basic"
	authPost       = "client_secret_post"
	authAssertion  = "private_key_jwt"
	authTLS        = "tls_client_auth"
	authSelfSigned = "self_signed_tls_client_auth"
)

const maxRedirects = 32

// usesSecret reports whether a secret is what proves the client.
func (c *Client) usesSecret() bool {
	return !c.Public && (c.AuthMethod == "" || c.AuthMethod == authBasic || c.AuthMethod == authPost)
}

// checkEndpoints refuses what contradicts itself in the fields that the standard endpoints read.
func (c *Client) checkEndpoints() error {
	if len(c.RedirectURIs) > maxRedirects {
		return fail(ErrInvalidRequest, "%d redirect URIs, at most %d", len(c.RedirectURIs), maxRedirects)
	}
	for _, uri := range c.RedirectURIs {
		if err := redirect.Check(uri, func(string) bool { return true }); err != nil {
			return fail(ErrInvalidRequest, "redirect URI %q %s", uri, err)
		}
	}
	if c.BindDPoP && c.BindCertificate {
		return fail(ErrInvalidRequest, "BindDPoP and BindCertificate: a token is bound to one thing")
	}
	if c.Public && c.AuthMethod != "" {
		return fail(ErrInvalidRequest, "a public client has no AuthMethod")
	}
	keys, certs, err := clientauth.Keys(c.Keys)
	if err != nil {
		return public(err)
	}
	switch c.AuthMethod {
	case "", authBasic, authPost:
	case authAssertion:
		if len(keys) == 0 {
			return fail(ErrInvalidRequest, "private_key_jwt needs Keys with a public key that can be used")
		}
	case authTLS:
		if err := clientauth.CheckName(c.TLSName); err != nil {
			return public(err)
		}
	case authSelfSigned:
		if len(certs) == 0 {
			return fail(ErrInvalidRequest, "self_signed_tls_client_auth needs Keys with a certificate, x5c or x5t#S256 (RFC 8705 §2.2.2)")
		}
	default:
		return fail(ErrInvalidRequest, "AuthMethod %q is unknown", c.AuthMethod)
	}
	if c.TLSName != "" && c.AuthMethod != authTLS {
		return fail(ErrInvalidRequest, "TLSName is for tls_client_auth")
	}
	return nil
}

// HashSecret makes of a client secret what [Clients.Declare] takes in its place, for configuration files that should not
// hold it unencrypted. The client itself continues to present secret. It takes a tenth of a second, on purpose. ErrInvalidRequest: it
// is under 16 bytes, or was generated: of a generated one the service keeps a fast hash, by which RevokeLeaked finds it.
func HashSecret(secret Secret) (_ string, failed error) {
	defer tell(&failed)
	if len(secret.Reveal()) < clientauth.MinChosen {
		return "", fail(ErrInvalidRequest, "a secret under %d bytes", clientauth.MinChosen)
	}
	for range opaque.Find([]byte(secret.Reveal())) {
		return "", fail(ErrInvalidRequest, "a generated secret is not hashed by its host")
	}
	x, err := clientauth.NewChosen(secret.Reveal(), time.Now())
	if err != nil {
		return "", public(err)
	}
	return x.Text(), nil
}

// confirmation is the outcome of an authentication, carried on to the calls that follow it in one request.
type confirmation struct {
	of     *Clients
	id     string
	secret [32]byte // hash of the secret that was right
	made   bool     // by us: the hash stays the same as long as the secret does
}

// Confirm is Authenticate for adapters that have more than one call to make: the ClientAuth that it returns carries the
// outcome, so that an assertion, which is good once, is not used twice. Keep it no longer than the request.
func (cs *Clients) Confirm(ctx context.Context, a ClientAuth) (Client, ClientAuth, error) {
	c, proof, err := cs.confirm(ctx, a)
	if err != nil {
		return Client{}, ClientAuth{}, err
	}
	return c, ClientAuth{ID: c.ID, confirmed: proof}, nil
}

// still is what a confirmation is worth now: the client may have been disabled since, and the secret that convinced us may
// have ended, so that nothing more comes of it once this process has heard.
func (cs *Clients) still(a *ClientAuth) (Client, error) {
	p := a.confirmed
	if p.of != cs || p.id != a.ID {
		return Client{}, fail(ErrInvalidClient, "confirmed by another service, or for another client")
	}
	c, err := cs.enabled(a.ID)
	if err == nil && p.made {
		k := cs.lookup(a.ID)
		if k == nil || !slices.ContainsFunc(k.rec.live(cs.s.now()), func(cl clientSecret) bool { return cl.Hash == p.secret && !cs.ended(&cl) }) {
			return Client{}, fail(ErrInvalidClient, "its secret has ended since it was confirmed")
		}
	}
	return c, err
}

// prove checks an assertion or a certificate. nil error and false: it is not the client's.
func (cs *Clients) prove(ctx context.Context, k *knownClient, a *ClientAuth) (bool, error) {
	if k == nil {
		k = nobody
	}
	if !a.Assertion.IsZero() {
		if k.AuthMethod != authAssertion {
			return false, nil
		}
		return cs.assertion(ctx, k, a)
	}
	if !clientauth.Valid(a.Certificate, cs.s.now()) {
		return false, nil
	}
	switch k.AuthMethod {
	case authTLS:
		return a.CertificateVerified && clientauth.Named(a.Certificate, k.TLSName), nil
	case authSelfSigned:
		return slices.Contains(k.certs, sha256.Sum256(a.Certificate.Raw)), nil
	}
	return false, nil
}

// assertion checks a JWT of RFC 7523 §3, and takes its jti once in all processes on the store.
func (cs *Clients) assertion(ctx context.Context, k *knownClient, a *ClientAuth) (bool, error) {
	endpoints := a.Endpoints
	if cs.s.cfg.FAPI {
		endpoints = nil
	}
	id, until, ok := clientauth.Assertion(a.Assertion.Reveal(), clientauth.Expected{Client: k.ID, Keys: k.keys,
		Issuer: cs.s.cfg.Issuer, Endpoints: endpoints, OneString: cs.s.cfg.FAPI, Algs: cs.s.cfg.Validation.algorithms(),
		Now: cs.s.now(), Skew: cs.s.cfg.Validation.ahead()})
	if !ok {
		return false, nil
	}
	err := cs.s.claim(ctx, "assertion\x00"+k.ID+"\x00"+id, until)
	if errors.Is(err, ErrInvalidRequest) {
		return false, nil // used before
	}
	return err == nil, err
}

// RegistrationToken makes the credential with which a client manages its own registration (RFC 7592), in place of one
// that it had before: shown now and never again. A client that had none keeps its scopes, grant types and bindings as
// the most it may have, see Reregister.
func (cs *Clients) RegistrationToken(ctx context.Context, id string) (Secret, error) {
	if err := cs.s.audit.ready(); err != nil {
		return Secret{}, err
	}
	for range refreshTries {
		rec, v, err := cs.read(ctx, id)
		if err != nil {
			return Secret{}, err
		}
		secret, own := cs.newSecret(registrationOf(id))
		if rec.Registration == nil {
			rec.Most.setScopes(rec.Scopes)
			rec.Most.setGrantTypes(rec.GrantTypes)
			rec.Most.BindDPoP, rec.Most.BindCertificate = rec.BindDPoP, rec.BindCertificate
		}
		rec.Registration = &own
		if err = cs.write(ctx, id, &rec, v, "registration token made", nil); errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return Secret{}, err
		}
		return secret, nil
	}
	return Secret{}, tryAgain("parallel updates of client %s", id)
}

// registrationOf is a name that no client has, under which the hash of a registration token is made: it never passes
// for the client's secret, nor the other way round.
func registrationOf(id string) string { return "registration\x00" + id }

// Registered returns the client whose registration token this is. ErrInvalidToken: it is not id's, or the client is
// disabled.
func (cs *Clients) Registered(ctx context.Context, id string, token Secret) (Client, error) {
	k, err := cs.registration(ctx, token)
	if err != nil {
		return Client{}, err
	}
	rec, _, err := cs.registered(ctx, id, k)
	if err != nil {
		return Client{}, err
	}
	return rec.public(id), nil
}

// registration reads a registration token. Junk ends here, without a store read.
func (cs *Clients) registration(ctx context.Context, token Secret) (*opaque.Key, error) {
	k, ours, err := cs.signing.readMade(ctx, token.Reveal(), opaque.ClientSecret)
	switch {
	case err != nil:
		return nil, err
	case !ours:
		return nil, fail(ErrInvalidToken, "not a registration token")
	}
	return k, nil
}

// registered is the record of the enabled client whose registration token k is.
func (cs *Clients) registered(ctx context.Context, id string, k *opaque.Key) (clientRecord, store.Version, error) {
	rec, v, err := cs.read(ctx, id)
	if err != nil && !isNotFound(err) {
		return clientRecord{}, v, err
	}
	var want clientSecret
	if err == nil && rec.Registration != nil {
		want = *rec.Registration
	}
	got := cs.hash(registrationOf(id), k)
	switch ours := subtle.ConstantTimeCompare(got[:], want.Hash[:]) == 1; {
	case ours && !rec.Disabled && !cs.ended(&want):
		return rec, v, nil
	case ours: // whoever holds it was this client
		cs.unregistered(ctx, refusal{usage.Refusal{Client: id}}, fail(ErrDenied, "the client is disabled, or its registration token was revoked"))
	case cs.lookup(id) != nil: // of our making, and not its own, or no longer
		cs.unregistered(ctx, refusal{usage.Refusal{Claimed: id}}, fail(ErrDenied, "another registration token than the client's"))
	}
	return clientRecord{}, v, fail(ErrInvalidToken, "not the registration token of client %q", id)
}

// unregistered counts what whoever presents a registration token may not do.
func (cs *Clients) unregistered(ctx context.Context, known refusal, err error) {
	cs.s.audit.denied(ctx, "registration", known, err)
}

// Check says whether Issue or Prepare would take r now, so that an adapter can refuse it before it asks a user. An empty
// Subject stands for any.
func (a *Adapter) Check(ctx context.Context, r Request) error {
	if r.Subject == "" {
		r.Subject = "?"
	}
	if r.Grant != "" {
		return fail(ErrInvalidRequest, "a request under a grant is not checked ahead")
	}
	who, err := a.Clients.caller(ctx, r.Auth)
	if err == nil {
		err = a.Clients.await(ctx, r.Client)
	}
	if err != nil {
		return err
	}
	_, err = a.planLogin(a.begin(ctx), &r, &who)
	return err
}

// SignIntrospection signs an introspection response for the resource server that audience names (RFC 9701 §5). response
// is a JSON object. ErrInvalidRequest: the active signing key is a secret, which nobody else could verify with.
func (a *Adapter) SignIntrospection(ctx context.Context, audience string, response []byte) (string, error) {
	if err := jws.CheckJSON(response); err != nil || !bytes.HasPrefix(response, []byte("{")) {
		return "", &Error{Code: ErrInvalidRequest, Detail: "not a JSON object", Cause: err}
	}
	key, err := a.SigningKeys.active(a.begin(ctx).view, a.now(), nil)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(key.Algorithm(), "HS") {
		return "", fail(ErrInvalidRequest, "the active signing key is symmetric")
	}
	payload, err := json.Marshal(struct {
		Issuer   string          `json:"iss"`
		Audience string          `json:"aud"`
		IssuedAt int64           `json:"iat"`
		Response json.RawMessage `json:"token_introspection"`
	}{a.cfg.Issuer, audience, a.now().Unix(), response})
	if err != nil {
		return "", &Error{Code: ErrInvalidRequest, Detail: "introspection response", Cause: err}
	}
	return key.SignText(ctx, "token-introspection+jwt", payload)
}

// caller is the client that asks for something. It is found out once in a request, before anything is planned; each try looks
// whether it still holds.
type caller struct {
	auth   ClientAuth // its ID, and what was proved; zero: no client came, the host itself asks
	public bool       // anybody can call himself that
}

// caller confirms who asks. A zero a is nobody.
func (cs *Clients) caller(ctx context.Context, a ClientAuth) (caller, error) {
	if a.isZero() {
		return caller{}, nil
	}
	c, auth, err := cs.Confirm(ctx, a)
	if err != nil {
		return caller{}, err
	}
	return caller{auth, c.Public}, nil
}

func (x *caller) none() bool { return x.auth.isZero() }

func (x *caller) id() string { return x.auth.ID }

// now is the client as it is known at this try: it may have been disabled since, and its secret may have ended.
func (x *caller) now(cs *Clients) (Client, error) { return cs.still(&x.auth) }

// reindex keeps cs.made and the counters. The caller has the state's turn. before is nil for a client that is new, now for one that
// has gone.
func (cs *Clients) reindex(before, now *knownClient) {
	cs.chosen.Add(now.chosen() - before.chosen())
	cs.passing.Add(now.passing() - before.passing())
	had, has := before.madeIDs(), now.madeIDs()
	change := func(id opaque.ID, f func([]string) []string) {
		var list []string
		if v, ok := cs.made.Load(id); ok {
			list = v.([]string)
		}
		if list = f(slices.Clone(list)); len(list) > 0 {
			cs.made.Store(id, list)
		} else {
			cs.made.Delete(id)
		}
	}
	for _, id := range has {
		if !slices.Contains(had, id) {
			change(id, func(list []string) []string { return append(list, now.ID) })
		}
	}
	for _, id := range had {
		if !slices.Contains(has, id) {
			change(id, func(list []string) []string {
				return slices.DeleteFunc(list, func(s string) bool { return s == before.ID })
			})
		}
	}
}

// chosen is 1 for a client with a secret that a host chose.
func (k *knownClient) chosen() int64 {
	if k != nil && slices.ContainsFunc(k.rec.Secrets, func(cl clientSecret) bool { return cl.Chosen() }) {
		return 1
	}
	return 0
}

// madeIDs are the IDs of a client's secrets of our making, each once.
func (k *knownClient) madeIDs() (ids []opaque.ID) {
	if k == nil {
		return nil
	}
	add := func(cl *clientSecret) {
		if len(cl.ID) == len(opaque.ID{}) && !slices.Contains(ids, opaque.ID(cl.ID)) {
			ids = append(ids, opaque.ID(cl.ID))
		}
	}
	for i := range k.rec.Secrets {
		add(&k.rec.Secrets[i])
	}
	if k.rec.Registration != nil {
		add(k.rec.Registration)
	}
	return ids
}

// ended reports whether a rule has ended a secret of our making.
func (cs *Clients) ended(cl *clientSecret) bool {
	return len(cl.ID) == len(opaque.ID{}) && cs.s.rules.Ended(opaque.ID(cl.ID).String())
}

// wasLeaked reports whether secret is one of the client's that RevokeLeaked has ended.
func (cs *Clients) wasLeaked(ctx context.Context, id string, rec *clientRecord, secret Secret) bool {
	key, ours, err := cs.signing.readMade(ctx, secret.Reveal(), opaque.ClientSecret)
	if key == nil || err != nil {
		return false // chosen asks again, and reports the error
	}
	hash := cs.verifier(id, key, ours)
	return cs.s.rules.Ended(key.ID.String()) || slices.ContainsFunc(rec.Leaked, func(h []byte) bool { return bytes.Equal(h, hash[:]) })
}

// by names the client that asks: as a fact if it proved who it is, or else as claimed.
func (r *refusal) by(who *caller) {
	switch {
	case who.none():
	case who.public:
		r.Claimed = who.id()
	default:
		r.Client = who.id()
	}
}

// confirmed is by for a client that was confirmed earlier in the request: it is known before anything else of the call is read.
func (r *refusal) confirmed(cs *Clients, a *ClientAuth) {
	if a.confirmed == nil {
		return
	}
	if c, err := cs.still(a); err == nil {
		r.by(&caller{*a, c.Public})
	}
}

// Refused counts a refusal that an adapter decided by itself, as event.Refused with the given reason, a constant word, and why,
// the limit that said no. by is a client that [Clients.Confirm] confirmed, or the ID alone of a registered client that is refused
// something and proved nothing, as when a user says no to it; the Token in ctx says who else was refused. Either may be zero. It
// counts nothing where neither names anybody: strangers leave no names.
func (a *Adapter) Refused(ctx context.Context, by ClientAuth, reason, why string) {
	var known refusal
	if t := FromContext(ctx); !t.IsZero() {
		known.of(a.core, t.d)
	}
	if by.namesOnly() {
		if a.Clients.lookup(by.ID) != nil {
			known.Claimed = by.ID
		}
	} else {
		who, err := a.Clients.caller(ctx, by)
		if err != nil {
			return
		}
		known.by(&who)
	}
	if known.Named() {
		a.audit.denied(ctx, reason, known, fail(ErrDenied, "%s", why))
	}
}
