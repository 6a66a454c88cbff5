// Clients, registered with us: their stored form, their life, their secrets. clientproof.go finds out which one calls.

package apitoken

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/source"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/throttle"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Client is an application that presents tokens.
type Client struct {
	ID     string // made by Create if empty; Issue refuses it as a Subject, and no subject may go by it
	Name   string // shown to people; at most 100 bytes
	Public bool   // has no credential (RFC 6749 §2.1)
	// GrantTypes are what it may do at the token endpoint: "authorization_code", "refresh_token", "client_credentials",
	// "urn:ietf:params:oauth:grant-type:token-exchange", "…:jwt-bearer" and "…:device_code". Others are refused.
	GrantTypes     []string
	Scopes         Scopes   // the most it may hold
	Audiences      []string // the most it may ask for of Config.Audience and Audiences, its own default first; empty: all of them
	MayImpersonate bool     // may exchange a token without naming an actor (RFC 8693 §1.1)
	// Lifetimes are its own where they are not zero; Access, MaxAccess and Grant never longer than the service's. APIKey
	// stays zero: API keys have no client.
	Lifetimes Lifetimes
	Disabled  bool
	Created   time.Time
	// Expires is when a client that nobody here has made ends by itself: one that registered itself, or that described itself. Zero:
	// never. Keep moves it on, Update and Declare take it away: what the host has looked at stays.
	Expires time.Time

	// RedirectURIs are where the authorization endpoint may send its answers, compared byte for byte; for http on a
	// loopback address any port is taken (RFC 8252 §7.3). A scheme of a program's own may lack the dot of RFC 8252 §7.1, which then
	// nobody but this host vouches for. At most 32.
	RedirectURIs []string
	// AuthMethod is how a confidential client proves who it is, by the name of RFC 8414's registry: client_secret_basic,
	// client_secret_post, private_key_jwt, tls_client_auth, self_signed_tls_client_auth. Empty: by its secret, either way.
	AuthMethod string
	// Keys is the client's public JWK set (RFC 7517 §5), at most 6 KiB: for private_key_jwt, and with its certificates (x5c, or
	// x5t#S256) for self_signed_tls_client_auth. A key without alg is for the usual one of its type.
	Keys []byte
	// TLSName is what the certificate of a tls_client_auth client says (RFC 8705 §2.1.2): "dn:" and its subject as RFC 2253
	// writes it, or "dns:", "uri:", "ip:", "email:" and the value of a subject alternative name.
	TLSName string
	// BindDPoP and BindCertificate refuse this client tokens that are not bound to a DPoP key (RFC 9449 §5.2), or to its
	// TLS certificate (RFC 8705 §3.4), at the token endpoint.
	BindDPoP, BindCertificate bool
}

// ClientAuth is a client's credential: ID and one of the others, or ID alone for a public client.
type ClientAuth struct {
	ID     string
	Secret Secret
	// Assertion is a JWT that the client signed (RFC 7523 §2.2), good once; ID may then be empty. Its aud must be this issuer and
	// nothing else (draft-ietf-oauth-rfc7523bis §4), or one of Endpoints.
	Assertion Secret
	// Endpoints are URLs that an assertion may be for as well, such as the token endpoint's: for clients that cannot name the
	// issuer. A server that a client is led to believe is this one could then use what the client signs for it. Empty: none; with
	// Config.FAPI they are not looked at.
	Endpoints []string
	// Certificate is what the client's TLS connection showed (RFC 8705 §2). CertificateVerified says that its chain was
	// verified up to a CA that names clients.
	Certificate         *x509.Certificate
	CertificateVerified bool

	confirmed *confirmation
}

// proves reports whether a holds anything that came from a client. Without it the host speaks for itself.
func (a *ClientAuth) proves() bool {
	return a.ID != "" || !a.Secret.IsZero() || !a.Assertion.IsZero() || a.Certificate != nil || a.confirmed != nil
}

// namesOnly reports whether a is an ID alone, which anybody may say.
func (a *ClientAuth) namesOnly() bool {
	return a.ID != "" && a.Secret.IsZero() && a.Assertion.IsZero() && a.Certificate == nil && a.confirmed == nil
}

func (a ClientAuth) isZero() bool {
	return a.ID == "" && a.Secret.IsZero() && a.Assertion.IsZero() && a.Certificate == nil
}

// Clients are the registered clients of a service. They are state: every process knows them all.
type Clients struct {
	s       *core
	signing *SigningKeys
	known   sync.Map // ID → *knownClient
	made    sync.Map // opaque.ID of a secret that we made → IDs of the clients that have it; written by whoever follows the state
	secrets *clientauth.Checker
	chosen  atomic.Int64              // clients that have a secret that a host chose; written by whoever follows the state
	passing atomic.Int64              // clients that end by themselves; written by whoever follows the state
	looked  atomic.Pointer[time.Time] // when an unknown ID made Known look at the store
}

// knownClient is a client as this process knows it.
type knownClient struct {
	Client
	rec     clientRecord
	version store.Version
	keys    []*jws.PublicKey // verify its assertions
	certs   [][32]byte       // SHA-256 of its self-signed certificates
	damaged error            // its record cannot be read: nobody may act as it, and nobody is told that it is not there
	proved  atomic.Pointer[clientauth.Proved]
}

type clientRecord struct {
	V              int            `json:"v"`
	Name           string         `json:"name,omitempty"`
	Public         bool           `json:"public,omitempty"`
	GrantTypes     []string       `json:"grant_types,omitempty"`
	Scopes         Scopes         `json:"scopes,omitempty"`
	Audiences      []string       `json:"aud,omitempty"`
	MayImpersonate bool           `json:"impersonate,omitempty"`
	Lifetimes      Lifetimes      `json:"lifetimes,omitzero"`
	Disabled       bool           `json:"disabled,omitempty"`
	Created        int64          `json:"created"` // Unix ms
	Secrets        []clientSecret `json:"secrets,omitempty"`

	RedirectURIs    []string        `json:"redirect_uris,omitempty"`
	AuthMethod      string          `json:"auth,omitempty"`
	Keys            json.RawMessage `json:"jwks,omitempty"`
	TLSName         string          `json:"tls_name,omitempty"`
	BindDPoP        bool            `json:"bind_dpop,omitempty"`
	BindCertificate bool            `json:"bind_cert,omitempty"`
	Registration    *clientSecret   `json:"registration,omitempty"` // verifier of its registration token
	Most            clientMost      `json:"most,omitzero"`          // that it may register itself for
	Leaked          [][]byte        `json:"leaked,omitempty"`       // hashes of secrets that Declare must not bring back
	Expires         int64           `json:"expires,omitempty"`      // Unix ms; 0: never
	record.Ext
}

// clientMost is the most that a client may register itself for, set by its host: a nil list and false
// leave it to the client. An older process that cannot read it refuses the client, which is right: it
// would let the client widen itself.
type clientMost struct {
	Scopes          *Scopes   `json:"scopes,omitempty"`
	GrantTypes      *[]string `json:"grant_types,omitempty"`
	BindDPoP        bool      `json:"bind_dpop,omitempty"`
	BindCertificate bool      `json:"bind_cert,omitempty"`
}

type clientSecret = clientauth.Secret

const (
	maxClientName   = 100
	maxClientRecord = 15 << 10
	labelClient     = "cs1h"
	labelForeign    = "cs1f"
	lookForClients  = time.Second
	clientSlack     = 24 * time.Hour // after its end a client's record is there still, for people who wonder
)

var clientForm = record.Form[clientRecord]{Kind: store.KindClient, Check: func(rec *clientRecord) error {
	if _, _, err := clientauth.Keys(rec.Keys); err != nil {
		return fmt.Errorf("its keys: %s", detailOf(err))
	}
	return commit.First(rec.V)
}}

func newClients(s *core, signing *SigningKeys) *Clients {
	return &Clients{s: s, signing: signing, secrets: clientauth.NewChecker()}
}

func (cs *Clients) reset() {
	cs.known.Clear()
	cs.made.Clear()
	cs.chosen.Store(0)
	cs.passing.Store(0)
}

func (cs *Clients) applyRecord(r store.Record) error {
	var rec clientRecord
	if err := read(&clientForm, r, &rec); err != nil {
		return err
	}
	keys, certs, err := clientauth.Keys(rec.Keys)
	if err != nil {
		return public(err)
	}
	old := cs.lookup(r.ID)
	k := &knownClient{Client: rec.public(r.ID), rec: rec, version: r.Version, keys: keys, certs: certs}
	cs.known.Store(r.ID, k)
	cs.reindex(old, k)
	return nil
}

func (rec *clientRecord) public(id string) Client {
	c := Client{ID: id, Name: rec.Name, Public: rec.Public, GrantTypes: slices.Clone(rec.GrantTypes), Scopes: slices.Clone(rec.Scopes),
		Audiences: slices.Clone(rec.Audiences), MayImpersonate: rec.MayImpersonate, Lifetimes: rec.Lifetimes, Disabled: rec.Disabled, Created: time.UnixMilli(rec.Created),
		RedirectURIs: slices.Clone(rec.RedirectURIs), AuthMethod: rec.AuthMethod, Keys: slices.Clone(rec.Keys), TLSName: rec.TLSName,
		BindDPoP: rec.BindDPoP, BindCertificate: rec.BindCertificate}
	if rec.Expires != 0 {
		c.Expires = time.UnixMilli(rec.Expires)
	}
	return c
}

func (rec *clientRecord) set(c Client) {
	rec.V, rec.Name, rec.Public, rec.GrantTypes, rec.Scopes, rec.Audiences = 1, c.Name, c.Public, c.GrantTypes, c.Scopes, c.Audiences
	rec.MayImpersonate, rec.Lifetimes, rec.Disabled = c.MayImpersonate, c.Lifetimes, c.Disabled
	rec.RedirectURIs, rec.AuthMethod, rec.Keys, rec.TLSName = c.RedirectURIs, c.AuthMethod, c.Keys, c.TLSName
	rec.BindDPoP, rec.BindCertificate, rec.Expires = c.BindDPoP, c.BindCertificate, 0
	if !c.Expires.IsZero() {
		rec.Expires = c.Expires.UnixMilli()
	}
	if !c.usesSecret() {
		rec.Secrets = nil
	}
}

// lookup is the client as this process knows it, nil if it knows none.
func (cs *Clients) lookup(id string) *knownClient {
	if v, ok := cs.known.Load(id); ok {
		return v.(*knownClient)
	}
	return nil
}

// enabled is a client that a host names; it must exist and not be disabled.
func (cs *Clients) enabled(id string) (Client, error) {
	k := cs.lookup(id)
	if k == nil {
		return Client{}, fail(ErrInvalidClient, "no client %q", id)
	}
	if k.ended(cs.s.now()) {
		return Client{}, fail(ErrInvalidClient, "client %q has ended at %s", id, k.Expires.UTC().Format(time.RFC3339))
	}
	if err := cs.usable(k); err != nil {
		return Client{}, err
	}
	return k.Client, nil
}

// ended reports whether a client that ends by itself has done so.
func (k *knownClient) ended(now time.Time) bool { return !k.Expires.IsZero() && !now.Before(k.Expires) }

// usable says why nobody may act as a client that is here.
func (cs *Clients) usable(k *knownClient) error {
	if err := k.usable(); err != nil {
		return err
	}
	if err := cs.profiled(&k.Client, k.keys); err != nil { // made before the profile was asked for
		return &Error{Code: ErrInvalidClient, Detail: detailOf(err)}
	}
	return nil
}

func (k *knownClient) usable() error {
	switch {
	case k.damaged != nil:
		return unavailable(k.damaged, "the record of client "+k.ID+" cannot be read")
	case k.Disabled:
		return fail(ErrDenied, "client %q is disabled", k.ID)
	}
	return nil
}

// setAside keeps everybody from acting as a client whose record cannot be read.
func (cs *Clients) setAside(r store.Record, why error) {
	old := cs.lookup(r.ID)
	k := &knownClient{Client: Client{ID: r.ID}, version: r.Version, damaged: why}
	cs.known.Store(r.ID, k)
	cs.reindex(old, k)
}

// check refuses clients that contradict themselves or the service.
func (cs *Clients) check(c *Client) error {
	switch {
	case !nameShape.MatchString(c.ID):
		return fail(ErrInvalidRequest, "client ID %q is not 1 to 255 printable ASCII characters without space, quote and backslash", c.ID)
	case c.ID == cs.s.cfg.FirstParty:
		return fail(ErrInvalidRequest, "client ID %q is the host's own, Config.FirstParty", c.ID)
	case len(c.Name) > maxClientName || !text.PlainText(c.Name):
		return fail(ErrInvalidRequest, "a client's name has at most 100 bytes of UTF-8 without control characters")
	case c.Public && slices.Contains(c.GrantTypes, granttype.ClientCredentials):
		return fail(ErrInvalidRequest, "a public client cannot have client_credentials (RFC 6749 §4.4)")
	case c.Public && slices.Contains(c.GrantTypes, granttype.TokenExchange):
		return fail(ErrInvalidRequest, "a public client cannot exchange tokens: nobody knows who asks")
	case c.MayImpersonate && !slices.Contains(c.GrantTypes, granttype.TokenExchange):
		return fail(ErrInvalidRequest, "MayImpersonate without the grant type token-exchange")
	}
	for i, g := range c.GrantTypes {
		if !slices.Contains(granttype.All, g) || slices.Contains(c.GrantTypes[:i], g) {
			return fail(ErrInvalidRequest, "grant type %q is unknown or named twice", g)
		}
	}
	if err := c.Scopes.check(); err != nil {
		return err
	}
	if err := cs.s.cfg.known(c.Scopes); err != nil {
		return err
	}
	if len(c.Audiences) > maxAudiences {
		return fail(ErrInvalidRequest, "%d audiences, at most %d", len(c.Audiences), maxAudiences)
	}
	for _, a := range c.Audiences {
		if !nameShape.MatchString(a) {
			return fail(ErrInvalidRequest, "audience %q", a)
		}
	}
	if c.Lifetimes.APIKey != 0 {
		return fail(ErrInvalidRequest, "Lifetimes.APIKey: API keys are subjects', not clients'")
	}
	if err := c.Lifetimes.check("Lifetimes"); err != nil {
		return &Error{Code: ErrInvalidRequest, Detail: err.Error()}
	}
	c.Scopes = sortedScopes(c.Scopes)
	if err := c.checkEndpoints(); err != nil {
		return err
	}
	keys, _, err := clientauth.Keys(c.Keys)
	if err != nil {
		return public(err)
	}
	return cs.profiled(c, keys)
}

// Create registers c and returns it with its ID and, if it proves itself by one, its secret: shown now and
// never again. ErrInvalidRequest: the ID is taken, by a client or by a subject with a session, API key, ticket or access token,
// or c contradicts itself.
func (cs *Clients) Create(ctx context.Context, c Client) (_ Client, _ Secret, failed error) {
	defer tell(&failed)
	c, secret, _, err := cs.create(ctx, c, false)
	return c, secret, err
}

// Register is Create for a client that asked for its own registration (RFC 7591) and is to manage it:
// it returns its registration token too, as RegistrationToken does. Within what the host allows
// then, the client may have more later than it asked for first.
func (cs *Clients) Register(ctx context.Context, c Client) (_ Client, secret, registration Secret, _ error) {
	return cs.create(ctx, c, true)
}

func (cs *Clients) create(ctx context.Context, c Client, manages bool) (_ Client, secret, registration Secret, _ error) {
	now := cs.s.now()
	chosen := c.ID != ""
	if !chosen {
		c.ID = "cl_" + newID(now)
	}
	if err := cs.check(&c); err != nil {
		return Client{}, Secret{}, Secret{}, err
	}
	if chosen {
		if err := cs.noSubject(ctx, c.ID); err != nil {
			return Client{}, Secret{}, Secret{}, err
		}
	}
	if err := cs.s.audit.ready(); err != nil {
		return Client{}, Secret{}, Secret{}, err
	}

	rec := clientRecord{Created: now.UnixMilli()}
	rec.set(c)
	if c.usesSecret() {
		var cl clientSecret
		secret, cl = cs.newSecret(c.ID)
		rec.Secrets = []clientSecret{cl}
	}
	if manages {
		var cl clientSecret
		registration, cl = cs.newSecret(registrationOf(c.ID))
		rec.Registration = &cl
	}

	if err := cs.write(ctx, c.ID, &rec, store.Version{}, "created", nil); err != nil {
		if errors.Is(err, store.ErrConflict) {
			return Client{}, Secret{}, Secret{}, fail(ErrInvalidRequest, "client %q exists already", c.ID)
		}
		return Client{}, Secret{}, Secret{}, err
	}
	return rec.public(c.ID), secret, registration, nil
}

// noSubject refuses the ID of a new client that somebody else goes by: the tokens of either would pass for the other's. Somebody
// goes by it who has a session, an API key, a ticket that is not spent, or an access token that no session stands behind. The
// last leaves no record but its event, so Config.KeepEvents of less than Lifetimes.MaxAccess leaves some out.
func (cs *Clients) noSubject(ctx context.Context, id string) error {
	taken := func(what string) error {
		return fail(ErrInvalidRequest, "client ID %q is a subject's, who has %s: the tokens of one would pass for the other's", id, what)
	}
	for r, err := range cs.s.pages(ctx, store.Query{Kind: kindGrant, Subject: id, Newest: true}, Page{}) {
		if err != nil {
			return err
		}
		if g, err := readGrant(r); err != nil || cs.s.alive(r.ID, g) == nil { // one that can't be read may be alive
			return taken("a session")
		}
	}
	for r, err := range cs.s.pages(ctx, store.Query{Kind: store.KindAPIKey, Subject: id, Newest: true}, Page{}) {
		if err != nil {
			return err
		}
		var rec apiKeyRecord
		if read(&apiKeyForm, r, &rec) != nil || rec.alive(cs.s.now()) && cs.s.rules.Hit(rec.ruleSubject(r.ID)) == "" {
			return taken("an API key")
		}
	}
	for r, err := range cs.s.pages(ctx, store.Query{Kind: kindTicket, Subject: id, Newest: true}, Page{}) {
		if err != nil {
			return err
		}
		t, err := readTicket(r)
		if err != nil || t.Spent == "" && cs.s.now().UnixMilli() < t.Expires && cs.s.rules.Hit(t.got(r.Written)) == "" {
			return taken("a ticket or an authorization code")
		}
	}
	return cs.noToken(ctx, id, taken)
}

// noToken looks for access tokens of a subject in the events of the time that the longest of them lives.
func (cs *Clients) noToken(ctx context.Context, id string, taken func(what string) error) error {
	live := cs.s.space.Life().Access + time.Minute // for clocks that differ
	q := store.Query{Kind: store.KindEvent, Subject: id, Since: max(cs.s.now().Add(-live).UnixMilli(), 0), Newest: true}
	for r, err := range cs.s.pages(ctx, q, Page{}) {
		if err != nil {
			return err
		}
		e, err := readEvent(r)
		if err != nil {
			return err
		}
		if e.Type != event.Issued && e.Type != event.Exchanged || !e.OK || e.Issuer != "" || e.Subject != id {
			continue
		}

		// A token with a session was judged with its session.
		if _, err := cs.s.get(ctx, kindGrant, e.Grant); err == nil {
			continue
		} else if !isNotFound(err) {
			return err
		}
		at := store.Position{N: r.Written << 16} // about where it was issued
		x := &rules.Subject{Subject: id, Client: e.Client, ID: e.TokenID, Grant: e.Grant, Iat: e.Time, Pos: rules.Positions{Birth: at, View: at}}
		if cs.s.rules.Hit(x) == "" {
			return taken("an access token")
		}
	}
	return nil
}

// newSecret makes a secret of 256 random bits and its verifier.
func (cs *Clients) newSecret(client string) (Secret, clientSecret) {
	now := cs.s.now()
	k := opaque.Key{ID: opaque.NewID(now)}
	rand.Read(k.Secret[:])
	secret := NewSecret(cs.signing.seal(&k, opaque.ClientSecret))
	return secret, clientSecret{ID: k.ID[:], Hash: cs.hash(client, &k), Created: now.UnixMilli()}
}

// hash is what is kept of a secret of our making. Whoever compares with it has verified the tag, which it leaves out.
func (cs *Clients) hash(client string, k *opaque.Key) [32]byte {
	return opaque.Hash(labelClient, []byte(cs.s.ns), []byte(client), k.ID[:], k.Secret[:])
}

// verifier is hash for a secret that another service may have made, which a host declares here. We can't verify the tag
// of such a one, so its hash covers every byte.
func (cs *Clients) verifier(client string, k *opaque.Key, ours bool) [32]byte {
	if ours {
		return cs.hash(client, k)
	}
	return opaque.Hash(labelForeign, []byte(cs.s.ns), []byte(client), k.KID[:], k.ID[:], k.Secret[:], k.Tag[:])
}

// write stores rec with its event and, where rights were narrowed, the rules that say so.
func (cs *Clients) write(ctx context.Context, id string, rec *clientRecord, v store.Version, how string, rules func(*change) error) error {
	c := cs.s.newChange()
	err := cs.put(c, id, rec, v)
	if err != nil {
		return err
	}
	if rules != nil {
		if err := rules(c); err != nil {
			return err
		}
	}
	c.event(ctx, Event{Type: event.ClientChanged, OK: true, Reason: how, Client: id, Scopes: rec.Scopes})
	_, err = cs.s.commit(ctx, c)
	return err
}

// put adds rec to c.
func (cs *Clients) put(c *change, id string, rec *clientRecord, v store.Version) error {
	r := store.Record{ID: id, Client: id}
	if rec.Expires != 0 {
		r.Expires = rec.Expires + clientSlack.Milliseconds()
	}
	w, err := commit.Write(&clientForm, r, rec)
	if err != nil {
		return public(err)
	}
	if n := len(w.Record().Data); n > maxClientRecord {
		return fail(ErrInvalidRequest, "client %q takes %d bytes, at most %d", id, n, maxClientRecord)
	}
	c.Put(w, v)
	return nil
}

// Get returns one client, ErrNotFound if there is none.
func (cs *Clients) Get(ctx context.Context, id string) (_ Client, failed error) {
	defer tell(&failed)
	rec, _, err := cs.read(ctx, id)
	if err != nil {
		return Client{}, err
	}
	return rec.public(id), nil
}

// ClientSecret tells of one of a client's secrets: nothing that helps to guess it.
type ClientSecret struct {
	Created time.Time
	Expires time.Time // zero: never
}

// Secrets are the live secrets of a client, the oldest first. ErrNotFound.
func (cs *Clients) Secrets(ctx context.Context, id string) (list []ClientSecret, failed error) {
	defer tell(&failed)
	rec, _, err := cs.read(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, x := range rec.Secrets {
		s := ClientSecret{Created: time.UnixMilli(x.Created)}
		if x.Expires != 0 {
			if s.Expires = time.UnixMilli(x.Expires); !cs.s.now().Before(s.Expires) {
				continue
			}
		}
		list = append(list, s)
	}
	return list, nil
}

// Known is Get from this process's memory, for endpoints where a stranger names the client. An ID that is not there makes
// this process look at the store for news, once a second however many ask, as another process may have made the client a
// moment ago. ErrNotFound, ErrUnavailable.
func (cs *Clients) Known(ctx context.Context, id string) (Client, error) {
	k := cs.lookup(id)
	if k == nil && nameShape.MatchString(id) {
		now, last := time.Now(), cs.looked.Load()
		if (last == nil || now.Sub(*last) >= lookForClients) && cs.looked.CompareAndSwap(last, &now) {
			if err := cs.s.state.Refresh(ctx); err != nil {
				return Client{}, unavailable(err, "look for a client")
			}
			k = cs.lookup(id)
		}
	}
	switch {
	case k == nil || k.ended(cs.s.now()):
		return Client{}, fail(ErrNotFound, "no client %q", id)
	case k.damaged != nil:
		return Client{}, k.usable()
	}
	return k.rec.public(id), nil
}

func (cs *Clients) read(ctx context.Context, id string) (clientRecord, store.Version, error) {
	var rec clientRecord
	r, err := cs.s.get(ctx, store.KindClient, id)
	if err != nil {
		return rec, store.Version{}, err
	}
	return rec, r.Version, read(&clientForm, r, &rec)
}

// List lists the clients, newest ID first.
func (cs *Clients) List(ctx context.Context, p Page) iter.Seq2[Client, error] {
	return func(yield func(Client, error) bool) {
		for r, err := range cs.s.pages(ctx, store.Query{Kind: store.KindClient, Newest: true}, p) {
			var rec clientRecord
			if err == nil {
				err = read(&clientForm, r, &rec)
			}
			if !yield(rec.public(r.ID), err) {
				return
			}
		}
	}
}

// Update changes a client in one compare-and-swap, calling f again if another writer was first.
// Setting Disabled revokes all it holds; narrowing its scopes or audiences makes its tokens be minted again.
func (cs *Clients) Update(ctx context.Context, id string, f func(*Client) error) (_ Client, failed error) {
	defer tell(&failed)
	return cs.update(ctx, id, cs.read, f, func(rec *clientRecord, before, c *Client) error {
		rec.decide(before, c)
		c.Expires = time.Time{}
		return nil
	})
}

// Reregister is Update for a client that presents its registration token to change itself (RFC 7592
// §2.2). What Update and Declare last made of its scopes, its grant types, BindDPoP and
// BindCertificate since its first registration token stays the most it may have, whatever f asks
// for; so does what a client had when RegistrationToken made its first one. ErrInvalidToken: as of
// Registered. What f refuses is recorded with the text of its error, which must hold no secret.
func (cs *Clients) Reregister(ctx context.Context, id string, token Secret, f func(*Client) error) (Client, error) {
	k, err := cs.registration(ctx, token)
	if err != nil {
		return Client{}, err
	}
	read := func(ctx context.Context, id string) (clientRecord, store.Version, error) {
		return cs.registered(ctx, id, k)
	}
	c, err := cs.update(ctx, id, read, f, func(rec *clientRecord, before, c *Client) error {
		c.Expires = before.Expires
		return rec.Most.limit(c)
	})
	if !errors.Is(err, ErrInvalidToken) { // counted there
		cs.unregistered(ctx, refusal{usage.Refusal{Client: id}}, err)
	}
	return c, err
}

// decide notes what the host changes of a client that may change itself.
func (rec *clientRecord) decide(before, after *Client) {
	if rec.Registration == nil && rec.Most.isZero() {
		return
	}
	if !slices.Equal(sortedScopes(after.Scopes), sortedScopes(before.Scopes)) {
		rec.Most.setScopes(after.Scopes)
	}
	if !containsAll(after.GrantTypes, before.GrantTypes) || !containsAll(before.GrantTypes, after.GrantTypes) {
		rec.Most.setGrantTypes(after.GrantTypes)
	}
	if after.BindDPoP != before.BindDPoP {
		rec.Most.BindDPoP = after.BindDPoP
	}
	if after.BindCertificate != before.BindCertificate {
		rec.Most.BindCertificate = after.BindCertificate
	}
}

func (m *clientMost) isZero() bool { return *m == clientMost{} }

// An empty list is not nil, which would be stored as null and read as "the client decides".
func (m *clientMost) setScopes(list Scopes) {
	x := append(Scopes{}, sortedScopes(list)...)
	m.Scopes = &x
}

func (m *clientMost) setGrantTypes(list []string) {
	x := append([]string{}, list...)
	m.GrantTypes = &x
}

// limit cuts what a client asks for to what the host left it. A client of whose grant types nothing is
// left is refused, as at its registration.
func (m *clientMost) limit(c *Client) error {
	if m.Scopes != nil {
		c.Scopes = intersectScopes(c.Scopes, *m.Scopes)
	}
	if m.GrantTypes != nil {
		asked := len(c.GrantTypes)
		if c.GrantTypes = intersectTexts(c.GrantTypes, *m.GrantTypes); asked > 0 && len(c.GrantTypes) == 0 {
			return fail(ErrInvalidRequest, "the host has taken from client %q each grant type that it asks for", c.ID)
		}
	}
	c.BindDPoP = c.BindDPoP || m.BindDPoP
	c.BindCertificate = c.BindCertificate || m.BindCertificate
	return nil
}

// update reads, changes and writes a client; settle sees the record and the client before and after f.
func (cs *Clients) update(ctx context.Context, id string, read func(context.Context, string) (clientRecord, store.Version, error),
	f func(*Client) error, settle func(rec *clientRecord, before, after *Client) error) (Client, error) {
	for range refreshTries {
		rec, v, err := read(ctx, id)
		if err != nil {
			return Client{}, err
		}
		before := rec.public(id)
		c := rec.public(id)
		if err := f(&c); err != nil {
			return Client{}, err
		}
		if c.ID != id || c.Public != before.Public {
			return Client{}, fail(ErrInvalidRequest, "a client's ID and Public do not change")
		}
		c.Created = before.Created
		if err := settle(&rec, &before, &c); err != nil {
			return Client{}, err
		}
		if err := cs.check(&c); err != nil {
			return Client{}, err
		}
		how, hold := cs.narrowed(&before, &c, "updated")
		if hold == nil {
			if err := cs.s.audit.ready(); err != nil {
				return Client{}, err
			}
		}
		rec.set(c)
		err = cs.commitHolding(ctx, hold, how, func(rules func(*change) error) error {
			return cs.write(ctx, id, &rec, v, how, rules)
		})
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		return rec.public(id), err
	}
	return Client{}, tryAgain("parallel updates of client %s", id)
}

// commitHolding writes with a rule that is in force here before the store is asked.
func (cs *Clients) commitHolding(ctx context.Context, hold *rules.Held, how string, write func(func(*change) error) error) error {
	if hold == nil {
		return write(nil)
	}
	s := cs.s
	s.rules.Hold(hold)
	var kept *change
	err := write(func(c *change) error {
		kept = c
		return s.addRule(ctx, c, hold.Target, hold.Mint, "client "+how)
	})
	if err == nil || errors.Is(err, store.ErrConflict) || kept == nil || errors.Is(err, ErrInvalidRequest) {
		s.rules.Release(hold)
		return err
	}
	s.retryRule(hold, s.ruleWriter(kept))
	return err
}

// narrowed says which rule goes with a change: a client that is disabled loses all it holds; one that lost scopes,
// audiences or grant types has its tokens minted again. nil: it lost nothing.
func (cs *Clients) narrowed(before, after *Client, how string) (string, *rules.Held) {
	switch {
	case after.Disabled && !before.Disabled:
		return "disabled", &rules.Held{Target: rules.ByClient(after.ID)}
	case !after.Scopes.Cover(before.Scopes), !containsAll(after.GrantTypes, before.GrantTypes),
		!containsAll(cs.s.audiencesOf(after), cs.s.audiencesOf(before)):
		return how, &rules.Held{Target: rules.ByClient(after.ID), Mint: true}
	}
	return how, nil
}

func containsAll(list, want []string) bool { return len(intersectTexts(want, list)) == len(want) }

// RotateSecret adds a secret; the older one works for overlap longer. A client has at most two live ones.
func (cs *Clients) RotateSecret(ctx context.Context, id string, overlap time.Duration) (_ Secret, failed error) {
	defer tell(&failed)
	if overlap < 0 {
		return Secret{}, fail(ErrInvalidRequest, "negative overlap")
	}
	if err := cs.s.audit.ready(); err != nil {
		return Secret{}, err
	}
	for range refreshTries {
		rec, v, err := cs.read(ctx, id)
		if err != nil {
			return Secret{}, err
		}
		if c := rec.public(id); !c.usesSecret() {
			return Secret{}, fail(ErrInvalidRequest, "client %q has no secret: it is public, or proves itself otherwise", id)
		}
		secret, fresh := cs.newSecret(id)
		now := cs.s.now()
		until := now.Add(overlap).UnixMilli()
		live := rec.live(now)
		if len(live) > 0 { // of two live ones the newer goes on for the overlap
			last := live[len(live)-1]
			if last.Expires == 0 || last.Expires > until {
				last.Expires = until
			}
			live = []clientSecret{last}
		}
		if overlap == 0 {
			live = nil
		}
		rec.Secrets = append(live, fresh)
		err = cs.write(ctx, id, &rec, v, "secret rotated", nil)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return Secret{}, err
		}
		return secret, nil
	}
	return Secret{}, tryAgain("parallel updates of client %s", id)
}

func (rec *clientRecord) live(now time.Time) []clientSecret { return rec.appendLive(nil, now) }

func (rec *clientRecord) appendLive(out []clientSecret, now time.Time) []clientSecret {
	for _, x := range rec.Secrets {
		if x.Expires == 0 || now.UnixMilli() < x.Expires {
			out = append(out, x)
		}
	}
	return out
}

// Declare makes the client with c.ID be as c says and its secrets be these, and writes nothing if
// that is so already: for clients that a program's own configuration names, at each start. A secret has at
// least 16 bytes; two may be given while one replaces the other. What HashSecret made of a secret stands for it. A client with
// the grant type authorization_code has RedirectURIs.
//
// A secret that RevokeLeaked has ended does not come back: it is left out, with a warning in the log, so that a program whose
// configuration still names it starts. A client that has no other one is shut out until it is given one.
func (cs *Clients) Declare(ctx context.Context, c Client, secrets ...Secret) (failed error) {
	defer tell(&failed)
	if err := cs.check(&c); err != nil {
		return err
	}
	c.Expires = time.Time{}
	switch {
	case !c.usesSecret() && len(secrets) > 0:
		return fail(ErrInvalidRequest, "client %q has no secret: it is public, or proves itself otherwise", c.ID)
	case c.usesSecret() && len(secrets) == 0:
		return fail(ErrInvalidRequest, "client %q is confidential and has no secret", c.ID)
	case len(secrets) > clientauth.MaxLive:
		return fail(ErrInvalidRequest, "%d secrets, at most %d", len(secrets), clientauth.MaxLive)
	case slices.Contains(c.GrantTypes, granttype.AuthorizationCode) && len(c.RedirectURIs) == 0:
		return fail(ErrInvalidRequest, "client %q has the grant type authorization_code and no RedirectURIs: no code could reach it", c.ID)
	}
	for _, x := range secrets {
		if len(x.Reveal()) < clientauth.MinChosen {
			return fail(ErrInvalidRequest, "a secret of client %q is under %d bytes", c.ID, clientauth.MinChosen)
		}
		if _, _, err := clientauth.Parse(x.Reveal()); err != nil {
			return public(err)
		}
	}
	for range refreshTries {
		rec, v, err := cs.read(ctx, c.ID)
		if err != nil && !isNotFound(err) {
			return err
		}
		good := slices.DeleteFunc(slices.Clone(secrets), func(x Secret) bool { return cs.wasLeaked(ctx, c.ID, &rec, x) })
		if len(good) < len(secrets) {
			cs.s.log.Warn("apitoken: a declared secret was found in a leak and is left out: give the client another one", "client", c.ID, "left", len(good))
		}
		if err == nil && rec.same(c) && cs.holds(ctx, c.ID, &rec, good) {
			return nil
		}
		if err == nil && rec.Public != c.Public {
			return fail(ErrInvalidRequest, "client %q cannot change between public and confidential", c.ID)
		}
		before := rec.public(c.ID)
		fresh := isNotFound(err)
		if fresh {
			if err := cs.noSubject(ctx, c.ID); err != nil {
				return err
			}
			rec.Created = cs.s.now().UnixMilli()
		}
		rec.decide(&before, &c)
		rec.set(c)
		rec.Secrets = nil
		for _, x := range good {
			cl, err := cs.choose(ctx, c.ID, x.Reveal())
			if err != nil {
				return err
			}
			rec.Secrets = append(rec.Secrets, cl)
		}
		how, hold := "declared", (*rules.Held)(nil)
		if !fresh {
			how, hold = cs.narrowed(&before, &c, how)
		}
		if hold == nil {
			if err := cs.s.audit.ready(); err != nil {
				return err
			}
		}
		err = cs.commitHolding(ctx, hold, how, func(rules func(*change) error) error {
			return cs.write(ctx, c.ID, &rec, v, how, rules)
		})
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return tryAgain("parallel updates of client %s", c.ID)
}

func (rec *clientRecord) same(c Client) bool {
	want := *rec
	want.set(c)
	a, err1 := json.Marshal(rec)
	b, err2 := json.Marshal(want)
	return err1 == nil && err2 == nil && bytes.Equal(a, b)
}

// holds reports whether the client's live secrets are exactly these.
func (cs *Clients) holds(ctx context.Context, id string, rec *clientRecord, secrets []Secret) bool {
	live := rec.live(cs.s.now())
	if len(live) != len(secrets) {
		return false
	}
	for _, x := range secrets {
		known, ok, err := clientauth.Parse(x.Reveal())
		if err != nil || !slices.ContainsFunc(live, func(cl clientSecret) bool { return ok && cl.Equal(&known) || !ok && cs.fits(ctx, id, cl, x.Reveal()) }) {
			return false
		}
	}
	return true
}

// choose makes the verifier of a secret that the host brings: a plain hash if it was generated, else a slow one.
func (cs *Clients) choose(ctx context.Context, id, secret string) (clientSecret, error) {
	now := cs.s.now()
	if cl, ok, err := clientauth.Parse(secret); ok {
		cl.Created = now.UnixMilli()
		return cl, public(err)
	}
	k, ours, err := cs.signing.readMade(ctx, secret, opaque.ClientSecret)
	switch {
	case err != nil:
		return clientSecret{}, err
	case k != nil:
		return clientSecret{ID: k.ID[:], Hash: cs.verifier(id, k, ours), Created: now.UnixMilli()}, nil
	}
	cl, err := clientauth.NewChosen(secret, now)
	return cl, public(err)
}

// fits compares in constant time; a slow verifier takes a tenth of a second.
func (cs *Clients) fits(ctx context.Context, id string, cl clientSecret, secret string) bool {
	if cl.Chosen() {
		return cl.Fits(secret)
	}
	k, ours, err := cs.signing.readMade(ctx, secret, opaque.ClientSecret)
	if err != nil || k == nil {
		return false
	}
	got := cs.verifier(id, k, ours)
	return subtle.ConstantTimeCompare(got[:], cl.Hash[:]) == 1
}

// Authenticate confirms a client, in constant time: ErrInvalidClient, never saying whether the ID or the secret was
// wrong; ErrLimited when too many failures came from one source for one client, or when too many secrets that hosts chose
// wait to be checked. A correct secret of our making always passes, and names that no client has wait behind those that
// have a chosen one, so that a stranger cannot lock the client out.
func (cs *Clients) Authenticate(ctx context.Context, a ClientAuth) (Client, error) {
	c, _, err := cs.confirm(ctx, a)
	return c, err
}

// confirm is Authenticate, and says by what it was convinced.
func (cs *Clients) confirm(ctx context.Context, a ClientAuth) (Client, *confirmation, error) {
	if a.confirmed != nil { // earlier in the same request
		c, err := cs.still(&a)
		cs.refused(ctx, a.ID, err)
		return c, a.confirmed, err
	}
	if a.ID == "" && !a.Assertion.IsZero() {
		a.ID = clientauth.Claimant(a.Assertion.Reveal())
	}
	began := time.Now()
	proof := &confirmation{of: cs, id: a.ID}
	c, err := cs.authenticate(ctx, a, proof)
	cs.s.observe(ctx, Observation{Op: "authenticate", Client: a.ID, Err: err, Took: time.Since(began)})
	cs.refused(ctx, a.ID, err)
	return c, proof, err
}

// refused counts an authentication that failed, or that served nothing as the client is disabled.
func (cs *Clients) refused(ctx context.Context, id string, err error) {
	switch {
	case errors.Is(err, ErrInvalidClient), errors.Is(err, ErrLimited):
		cs.s.audit.clientRefused(ctx, reasonOf(err), id)
	case errors.Is(err, ErrDenied): // its credential was right
		r := usage.Refusal{Kind: string(event.ClientRefused), Reason: reasonOf(err), Client: id}
		if k := cs.lookup(id); k == nil || k.Public {
			r.Client, r.Claimed = "", id
		}
		cs.s.audit.tally.Count(r, whyOf(err), originOf(ctx).Address)
	}
}

func (cs *Clients) authenticate(ctx context.Context, a ClientAuth, proof *confirmation) (Client, error) {
	if !a.Secret.IsZero() && !a.Assertion.IsZero() {
		return Client{}, fail(ErrInvalidRequest, "a secret and an assertion: one of them (RFC 6749 §2.3)")
	}
	from := source.Of(originOf(ctx).Address)
	k := cs.lookup(a.ID)
	ok, err := cs.convinces(ctx, k, &a, from, proof)
	if err == nil && !ok && nameShape.MatchString(a.ID) && !cs.secrets.Failures.Over(throttle.Name{Who: a.ID, From: from}, cs.s.now()) {
		// Another process may have made the client, or given it another secret or key, and this one not have heard of it yet. A
		// wrong credential of a client that exists waits as long as an unknown client does.
		if err := cs.s.state.Look(ctx); err != nil {
			cs.secrets.Failures.Take(throttle.Name{Who: a.ID, From: from}, cs.s.now())
			return Client{}, unavailable(err, "look for a client or a credential that may be new")
		}
		if next := cs.lookup(a.ID); next != k {
			k = next
			ok, err = cs.convinces(ctx, k, &a, from, proof)
		}
	}
	if err != nil {
		return Client{}, err
	}
	if !ok && k != nil && k.damaged != nil {
		return Client{}, k.usable()
	}
	if !ok {
		if !cs.secrets.Failures.Take(throttle.Name{Who: a.ID, From: from}, cs.s.now()) {
			return Client{}, &Error{Code: ErrLimited, RetryAfter: throttle.Window, Detail: "too many failures of this client from this source"}
		}
		return Client{}, fail(ErrInvalidClient, "unknown client or wrong secret")
	}
	if k.ended(cs.s.now()) {
		return Client{}, fail(ErrInvalidClient, "the client has ended by itself")
	}
	if err := cs.usable(k); err != nil {
		return Client{}, err
	}
	return k.Client, nil
}

// convinces reports whether a is a credential of k, which is nil for a client that this process does not know. Of a public client
// the ID alone is enough.
func (cs *Clients) convinces(ctx context.Context, k *knownClient, a *ClientAuth, from string, proof *confirmation) (bool, error) {
	switch {
	case !a.Secret.IsZero():
		return cs.right(ctx, k, a.ID, a.Secret.Reveal(), from, proof)
	case a.Assertion.IsZero() && k != nil && k.Public:
		return true, nil
	case !a.Assertion.IsZero() || a.Certificate != nil:
		return cs.prove(ctx, k, a)
	}
	return cs.right(ctx, k, a.ID, "", from, proof)
}

// await gives this process one read of the store to hear of a client that a host names, which another process may have made.
// Whether it is there then is for enabled to say.
func (cs *Clients) await(ctx context.Context, id string) error {
	if id == "" || id == cs.s.cfg.FirstParty || cs.lookup(id) != nil || !nameShape.MatchString(id) {
		return nil
	}
	if err := cs.s.state.Look(ctx); err != nil {
		return unavailable(err, "look for a client that may be new")
	}
	return nil
}

// nobody has the shape of a confidential client and no secret that fits: unknown IDs walk the same path.
var nobody = &knownClient{}

// right compares a secret with the client's live ones, and notes in proof which it was.
func (cs *Clients) right(ctx context.Context, k *knownClient, id, secret, from string, proof *confirmation) (bool, error) {
	if k == nil || k.Public {
		k = nobody
	}
	var room [clientauth.MaxLive]clientSecret // on the stack: an allocation would show in time that the client exists
	live := k.rec.appendLive(room[:0], cs.s.now())

	// Only what we may have made is ours to hash fast: a host may have chosen a secret that looks like it, or taken that of a
	// service with another prefix.
	var fits int
	key, ours, err := cs.signing.readMade(ctx, secret, opaque.ClientSecret)
	switch {
	case err != nil:
		return false, err
	case key != nil:
		fits = clientauth.Match(live, cs.verifier(id, key, ours))
	default:
		fits, err = cs.secrets.Check(ctx, clientauth.Attempt{Name: throttle.Name{Who: id, From: from}, Secret: secret,
			Live: live, Proved: &k.proved, Skip: cs.chosen.Load() == 0, Now: cs.s.now})
	}
	if err != nil || fits < 0 {
		return false, public(err)
	}
	proof.secret, proof.made = live[fits].Hash, !live[fits].Chosen()
	return !cs.ended(&live[fits]), nil
}
