// Clients as their host registers them: made, read, changed, given secrets. caller.go has what a client does itself; internal/clients
// knows how they are stored and which ones there are.

package apitoken

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/ticket"
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

// Clients are the registered clients of a service. They are state: every process knows them all.
type Clients struct {
	s      *core
	known  *clients.Directory[Client]
	proofs *clientauth.Checker
}

// knownClient is a client as this process knows it.
type knownClient = clients.Known[Client]

func (cs *Clients) terms() clients.Terms {
	return clients.Terms{FirstParty: cs.s.cfg.FirstParty, FAPI: cs.s.cfg.FAPI}
}

// clientFrom is a client as its record has it, in memory of its own.
func clientFrom(id string, r *clients.Record) Client {
	c := Client{ID: id, Name: r.Name, Public: r.Public, GrantTypes: slices.Clone(r.GrantTypes), Scopes: scopesOf(r.Scopes),
		Audiences: slices.Clone(r.Audiences), MayImpersonate: r.MayImpersonate, Lifetimes: Lifetimes(r.Lifetimes), Disabled: r.Disabled,
		Created: time.UnixMilli(r.Created), RedirectURIs: slices.Clone(r.RedirectURIs), AuthMethod: r.AuthMethod, Keys: slices.Clone(r.Keys),
		TLSName: r.TLSName, BindDPoP: r.BindDPoP, BindCertificate: r.BindCertificate}
	if r.Expires != 0 {
		c.Expires = time.UnixMilli(r.Expires)
	}
	return c
}

// own is c in memory of its own. What this process knows of a client is one for all who ask.
func (c Client) own() Client {
	c.GrantTypes, c.Scopes, c.Audiences = slices.Clone(c.GrantTypes), slices.Clone(c.Scopes), slices.Clone(c.Audiences)
	c.RedirectURIs, c.Keys = slices.Clone(c.RedirectURIs), slices.Clone(c.Keys)
	return c
}

// toRecord is old with what a host sees of it replaced by c. Secrets go where c has none.
func (c *Client) toRecord(old *clients.Record) *clients.Record {
	r := *old
	r.V, r.Name, r.Public, r.GrantTypes, r.Scopes, r.Audiences = 1, c.Name, c.Public, c.GrantTypes, c.Scopes.texts(), c.Audiences
	r.MayImpersonate, r.Lifetimes, r.Disabled = c.MayImpersonate, clients.Lifetimes(c.Lifetimes), c.Disabled
	r.RedirectURIs, r.AuthMethod, r.Keys, r.TLSName = c.RedirectURIs, c.AuthMethod, c.Keys, c.TLSName
	r.BindDPoP, r.BindCertificate, r.Expires = c.BindDPoP, c.BindCertificate, 0
	if !c.Expires.IsZero() {
		r.Expires = c.Expires.UnixMilli()
	}
	if !c.usesSecret() {
		r.Secrets = nil
	}
	return &r
}

// usesSecret reports whether a secret is what proves the client.
func (c *Client) usesSecret() bool { return clientauth.UsesSecret(c.Public, c.AuthMethod) }

// check refuses clients that contradict themselves or the service.
func (cs *Clients) check(c *Client) error {
	if err := c.toRecord(&clients.Record{}).Check(c.ID, cs.terms()); err != nil {
		return public(err)
	}
	if err := registry(cs.s.cfg.Scopes).check(c.Scopes); err != nil {
		return err
	}
	if len(c.Audiences) > maxAudiences {
		return fail(ErrInvalidRequest, "%d audiences, at most %d", len(c.Audiences), maxAudiences)
	}
	if err := c.Lifetimes.check("Lifetimes"); err != nil {
		return &Error{Code: ErrInvalidRequest, Detail: err.Error()}
	}
	c.Scopes = sortedScopes(c.Scopes)
	return nil
}

// read is a client's record as the store has it now. ErrNotFound.
func (cs *Clients) read(ctx context.Context, id string) (*clients.Record, store.Version, error) {
	rec, v, err := cs.known.Read(ctx, id)
	return rec, v, public(err)
}

// readOrNew is read; the record of a client that is not there has V 0.
func (cs *Clients) readOrNew(ctx context.Context, id string) (*clients.Record, store.Version, error) {
	rec, v, err := cs.read(ctx, id)
	if isNotFound(err) {
		return new(clients.Record), store.Version{}, nil
	}
	return rec, v, err
}

// clientReader finds the record that is changed.
type clientReader func(ctx context.Context, id string) (*clients.Record, store.Version, error)

// revise replaces a client's record by what f makes of it, nil for nothing, and returns what is stored then. f says how it changes,
// for the event, and is called again if another writer was first.
func (cs *Clients) revise(ctx context.Context, id string, read clientReader, f func(*clients.Record) (*clients.Record, string, error)) (*clients.Record, error) {
	var next *clients.Record
	err := commit.Retry("parallel updates of client "+id, func() error {
		rec, v, err := read(ctx, id)
		if err != nil {
			return err
		}
		var how string
		if next, how, err = f(rec); err != nil || next == nil {
			next = rec
			return commit.Final(err) // f may call the host
		}
		return cs.write(ctx, id, rec, next, v, how)
	})
	return next, public(err)
}

// write stores next in place of old, with its event. Where the client loses rights the rule that says so is written too, and is in
// force here before the store is asked. old has V 0 for a client that is new.
func (cs *Clients) write(ctx context.Context, id string, old, next *clients.Record, v store.Version, how string) error {
	s := cs.s
	c := s.newChange()
	if err := public(next.Put(&c.Change, id, v)); err != nil {
		return err
	}
	lost, mint := cs.narrowed(id, old, next)
	if lost && !mint {
		how = "disabled"
	}
	c.event(ctx, Event{Type: event.ClientChanged, OK: true, Reason: how, Client: id, Scopes: scopesOf(next.Scopes)})
	if lost {
		return public(s.revoke.Write(ctx, &c.Change, revoke.Rule{Target: rules.ByClient(id), Mint: mint, Reason: "client " + how}))
	}
	if err := s.ready(); err != nil {
		return err
	}
	_, err := s.commit(ctx, c)
	return err
}

// narrowed reports whether a client loses something by a change: one that is disabled loses all it holds; one that lost scopes,
// audiences or grant types has its tokens minted again.
func (cs *Clients) narrowed(id string, old, next *clients.Record) (lost, mint bool) {
	before, after := clientFrom(id, old), clientFrom(id, next)
	switch {
	case old.V == 0:
		return false, false
	case after.Disabled && !before.Disabled:
		return true, false
	}
	lost = !after.Scopes.Cover(before.Scopes) || !containsAll(after.GrantTypes, before.GrantTypes) ||
		!containsAll(cs.s.audiencesOf(&after), cs.s.audiencesOf(&before))
	return lost, lost
}

// audiencesOf is what a client may ask for, its default first.
func (s *core) audiencesOf(c *Client) []string {
	if len(c.Audiences) > 0 {
		return text.Resources(c.Audiences, s.audiences)
	}
	return s.audiences
}

// lifetimes are the client's, and the service's where it has none, never longer than the service's maximum.
func (s *core) lifetimes(c *Client) Lifetimes {
	l, base := c.Lifetimes, s.cfg.Lifetimes
	pick := func(own, base time.Duration) time.Duration {
		if own > 0 {
			return own
		}
		return base
	}
	l.MaxAccess = min(pick(l.MaxAccess, base.MaxAccess), base.MaxAccess)
	l.Access = min(pick(l.Access, base.Access), l.MaxAccess)
	l.Grant = min(pick(l.Grant, base.Grant), base.Grant)
	l.Idle = pick(l.Idle, base.Idle)
	return l
}

func containsAll(list, want []string) bool { return len(intersectTexts(want, list)) == len(want) }

// Create registers c and returns it with its ID and, if it proves itself by one, its secret: shown now and
// never again. ErrInvalidRequest: the ID is taken, by a client or by a subject with a session, API key, ticket or access token,
// or c contradicts itself.
func (cs *Clients) Create(ctx context.Context, c Client) (_ Client, _ Secret, failed error) {
	defer tell(&failed)
	c, secret, _, err := cs.create(ctx, c, false)
	return c, secret, err
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

	rec := c.toRecord(&clients.Record{Created: now.UnixMilli()})
	if c.usesSecret() {
		var x clientauth.Secret
		secret, x = cs.newSecret(c.ID)
		rec.Secrets = []clientauth.Secret{x}
	}
	if manages {
		text, x := cs.proofs.MakeRegistration(c.ID)
		registration, rec.Registration = NewSecret(text), &x
	}
	err := cs.write(ctx, c.ID, &clients.Record{}, rec, store.Version{}, "created")
	if errors.Is(err, store.ErrConflict) {
		err = fail(ErrInvalidRequest, "client %q exists already", c.ID)
	}
	if err != nil {
		return Client{}, Secret{}, Secret{}, err
	}
	return clientFrom(c.ID, rec), secret, registration, nil
}

func (cs *Clients) newSecret(client string) (Secret, clientauth.Secret) {
	text, x := cs.proofs.Make(client)
	return NewSecret(text), x
}

// noSubject refuses the ID of a new client that somebody else goes by: the tokens of either would pass for the other's. Somebody
// goes by it who has a session, an API key, a ticket that is not spent, or an access token that no session stands behind. The
// last leaves no record but its event, so Config.KeepEvents of less than Lifetimes.MaxAccess leaves some out.
func (cs *Clients) noSubject(ctx context.Context, id string) error {
	taken := func(what string) error {
		return fail(ErrInvalidRequest, "client ID %q is a subject's, who has %s: the tokens of one would pass for the other's", id, what)
	}
	now := cs.s.now()
	for _, x := range []struct {
		kind  store.Kind
		what  string
		lives func(store.Record) bool // true for one that can't be read
	}{
		{grant.Kind, "a session", func(r store.Record) bool { g, err := readGrant(r); return err != nil || cs.s.alive(r.ID, g) == nil }},
		{store.KindAPIKey, "an API key", func(r store.Record) bool { k, err := apikey.Read(r, cs.s.rules); return err != nil || k.Live(now) }},
		{ticket.Kind, "a ticket or an authorization code", func(r store.Record) bool { return ticket.Open(r, cs.s.rules, now) }},
	} {
		for r, err := range cs.s.pages(ctx, store.Query{Kind: x.kind, Subject: id, Newest: true}, Page{}) {
			if err != nil {
				return err
			}
			if x.lives(r) {
				return taken(x.what)
			}
		}
	}
	has, err := cs.s.hasToken(ctx, id)
	if err == nil && has {
		err = taken("an access token")
	}
	return err
}

// Get returns one client, ErrNotFound if there is none.
func (cs *Clients) Get(ctx context.Context, id string) (_ Client, failed error) {
	defer tell(&failed)
	rec, _, err := cs.read(ctx, id)
	if err != nil {
		return Client{}, err
	}
	return clientFrom(id, rec), nil
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
	for _, x := range rec.Live(cs.s.now()) {
		s := ClientSecret{Created: time.UnixMilli(x.Created)}
		if x.Expires != 0 {
			s.Expires = time.UnixMilli(x.Expires)
		}
		list = append(list, s)
	}
	return list, nil
}

// Known is Get from this process's memory, for endpoints where a stranger names the client. An ID that is not there makes
// this process look at the store for news, once a second however many ask, as another process may have made the client a
// moment ago. ErrNotFound, ErrUnavailable.
func (cs *Clients) Known(ctx context.Context, id string) (Client, error) {
	k, err := cs.known.Find(ctx, id)
	if err != nil {
		return Client{}, public(err)
	}
	return clientFrom(id, &k.Record), nil
}

// lookup is the client as this process knows it, nil if it knows none.
func (cs *Clients) lookup(id string) *knownClient { return cs.known.Lookup(id) }

// enabled is a client that a host names; it must exist and not be disabled.
func (cs *Clients) enabled(id string) (Client, error) {
	k, err := cs.known.Enabled(id)
	if err != nil {
		return Client{}, public(err)
	}
	return k.Client, nil
}

// await gives this process one read of the store to hear of a client that a host names, which another process may have made.
func (cs *Clients) await(ctx context.Context, id string) error {
	return public(cs.known.Await(ctx, id))
}

// Count is the number of clients, and of those that are disabled, from this process's memory. It reads no store.
func (cs *Clients) Count() (all, disabled int) { return cs.known.Count() }

// List lists the clients, newest ID first.
func (cs *Clients) List(ctx context.Context, p Page) iter.Seq2[Client, error] {
	return func(yield func(Client, error) bool) {
		for r, err := range cs.s.pages(ctx, store.Query{Kind: store.KindClient, Newest: true}, p) {
			var rec clients.Record
			if err == nil {
				err = read(&clients.ClientForm, r, &rec)
			}
			if !yield(clientFrom(r.ID, &rec), err) {
				return
			}
		}
	}
}

// Update changes a client in one compare-and-swap, calling f again if another writer was first.
// Setting Disabled revokes all it holds; narrowing its scopes or audiences makes its tokens be minted again.
func (cs *Clients) Update(ctx context.Context, id string, f func(*Client) error) (_ Client, failed error) {
	defer tell(&failed)
	return cs.update(ctx, id, cs.read, true, func(c *Client) error {
		err := f(c)
		c.Expires = time.Time{}
		return err
	})
}

// update reads, changes and writes a client. What the host changes bounds what the client may change itself.
func (cs *Clients) update(ctx context.Context, id string, read clientReader, host bool, f func(*Client) error) (Client, error) {
	rec, err := cs.revise(ctx, id, read, func(rec *clients.Record) (*clients.Record, string, error) {
		c := clientFrom(id, rec)
		if err := f(&c); err != nil {
			return nil, "", err
		}
		if c.ID != id || c.Public != rec.Public {
			return nil, "", fail(ErrInvalidRequest, "a client's ID and Public do not change")
		}
		if err := cs.check(&c); err != nil {
			return nil, "", err
		}
		next := c.toRecord(rec)
		if host {
			next.Decide(rec)
		}
		return next, "updated", nil
	})
	if err != nil {
		return Client{}, err
	}
	return clientFrom(id, rec), nil
}

// RotateSecret adds a secret; the older one works for overlap longer. A client has at most two live ones.
func (cs *Clients) RotateSecret(ctx context.Context, id string, overlap time.Duration) (secret Secret, failed error) {
	defer tell(&failed)
	if overlap < 0 {
		return Secret{}, fail(ErrInvalidRequest, "negative overlap")
	}
	_, err := cs.revise(ctx, id, cs.read, func(rec *clients.Record) (*clients.Record, string, error) {
		if !clientauth.UsesSecret(rec.Public, rec.AuthMethod) {
			return nil, "", fail(ErrInvalidRequest, "client %q has no secret: it is public, or proves itself otherwise", id)
		}
		next := *rec
		var x clientauth.Secret
		secret, x = cs.newSecret(id)
		next.Rotate(x, cs.s.now(), overlap)
		return &next, "secret rotated", nil
	})
	if err != nil {
		return Secret{}, err
	}
	return secret, nil
}

// HashSecret makes of a client secret what [Clients.Declare] takes in its place, for configuration files that should not
// hold it unencrypted. The client itself continues to present secret. It takes a tenth of a second, on purpose. ErrInvalidRequest: it
// is under 16 bytes, or was generated: of a generated one the service keeps a fast hash, by which RevokeLeaked finds it.
func HashSecret(secret Secret) (_ string, failed error) {
	defer tell(&failed)
	text, err := clientauth.HashChosen(secret.Reveal())
	return text, public(err)
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
	texts := make([]string, len(secrets))
	for i, x := range secrets {
		texts[i] = x.Reveal()
		if err := clientauth.CheckBrought(c.ID, texts[i]); err != nil {
			return public(err)
		}
	}

	_, err := cs.revise(ctx, c.ID, cs.readOrNew, func(rec *clients.Record) (*clients.Record, string, error) {
		good := slices.DeleteFunc(slices.Clone(texts), func(x string) bool { return cs.proofs.Leaked(ctx, c.ID, x, rec.Leaked) })
		if len(good) < len(texts) {
			cs.s.log.Warn("apitoken: a declared secret was found in a leak and is left out: give the client another one", "client", c.ID, "left", len(good))
		}
		next := c.toRecord(rec)
		if rec.V == 0 {
			if err := cs.noSubject(ctx, c.ID); err != nil {
				return nil, "", err
			}
			next.Created = cs.s.now().UnixMilli()
		} else if rec.Public != c.Public {
			return nil, "", fail(ErrInvalidRequest, "client %q cannot change between public and confidential", c.ID)
		} else if rec.Same(next) && cs.proofs.Same(ctx, c.ID, rec.Live(cs.s.now()), good) {
			return nil, "", nil
		}
		next.Decide(rec)
		next.Secrets = nil
		for _, text := range good {
			x, err := cs.proofs.Take(ctx, c.ID, text)
			if err != nil {
				return nil, "", public(err)
			}
			next.Secrets = append(next.Secrets, x)
		}
		return next, "declared", nil
	})
	return err
}
