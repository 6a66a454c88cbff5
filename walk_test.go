package apitoken_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// The rule that these tests hold: whatever call makes something, and wherever in it a revocation is acknowledged, nothing that the
// call makes or answers is good afterwards, if the revocation names what it stands on. Each call is stopped in turn before and after
// each of its reads and writes, and where it asks the host.

// walking marks the context of the call that is stopped; others pass.
type walking struct{}

// gate is a store that stops a marked call once, at the place whose number is at, and runs do there to its end.
type gate struct {
	store.Store
	mu    sync.Mutex // guards all below
	count int
	at    int
	do    func()
	spare bool     // Follow is no place: do needs what follows the store
	where string   // the place that was reached
	wrote []string // the kinds of records that the call had written by then
	kinds []string // and has now
}

// arm counts anew.
func (g *gate) arm(at int, spare bool, do func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count, g.at, g.spare, g.do, g.where, g.wrote, g.kinds = 0, at, spare, do, "", nil, nil
}

func (g *gate) reached() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.where
}

// has reports whether the call had written a record of kind when it was stopped.
func (g *gate) has(kind string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Contains(g.wrote, kind)
}

func (g *gate) place(ctx context.Context, what string) {
	if ctx.Value(walking{}) == nil {
		return
	}
	g.mu.Lock()
	g.count++
	do := g.do
	if g.count != g.at || do == nil {
		g.mu.Unlock()
		return
	}
	g.where, g.do, g.wrote = what, nil, g.kinds
	g.mu.Unlock()
	do()
}

func (g *gate) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	g.place(ctx, "before a read of a "+string(k))
	defer g.place(ctx, "after a read of a "+string(k))
	return g.Store.Get(ctx, k, id)
}

func (g *gate) List(ctx context.Context, q store.Query) (store.Page, error) {
	g.place(ctx, "before a list of "+string(q.Kind))
	defer g.place(ctx, "after a list of "+string(q.Kind))
	return g.Store.List(ctx, q)
}

func (g *gate) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	what := "events"
	if len(c.Puts) > 0 {
		what = string(c.Puts[0].Kind)
	}
	g.place(ctx, "before a write of "+what)
	done, err := g.Store.Apply(ctx, c)
	if err == nil && ctx.Value(walking{}) != nil {
		g.mu.Lock()
		for _, p := range c.Puts {
			g.kinds = append(g.kinds, string(p.Kind))
		}
		g.mu.Unlock()
	}
	g.place(ctx, "after a write of "+what)
	return done, err
}

func (g *gate) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	g.mu.Lock()
	spare := g.spare
	g.mu.Unlock()
	if !spare {
		g.place(ctx, "before following")
		defer g.place(ctx, "after following")
	}
	return g.Store.Follow(ctx, after, kinds, max)
}

// scene is two processes on one store, and somebody in it.
type scene struct {
	t          testing.TB
	svc, other *apitoken.Service
	gate       *gate
	n          int

	// Anew for each place.
	alice    string
	auth     apitoken.ClientAuth // the client that things are made by or for
	client   string
	parent   *apitoken.Issued // what the new thing descends from
	key      apitoken.APIKey  // likewise
	ticket   apitoken.Secret
	leaked   string   // the text of what it descends from
	standing []string // grants and keys that were there before
}

// made is what a call gave out.
type made struct {
	tokens  []apitoken.Secret // that Validate takes
	refresh []apitoken.Secret
	tickets []apitoken.Secret
	proofs  []func(*apitoken.Service) error // of a client; nil: it is confirmed
}

func madeOf(i *apitoken.Issued, err error) (made, error) {
	if err != nil {
		return made{}, err
	}
	m := made{tokens: []apitoken.Secret{i.Access}}
	if !i.Refresh.IsZero() {
		m.refresh = []apitoken.Secret{i.Refresh}
	}
	return m, nil
}

func madeKey(_ apitoken.APIKey, s apitoken.Secret, err error) (made, error) {
	return made{tokens: []apitoken.Secret{s}}, err
}

// endings are the ways to end what a scene's things stand on, in a process that is not stopped.
var endings = map[string]func(context.Context, *apitoken.Service, *scene) error{
	"subject": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.BySubject(s.alice), "walk")
	},
	"sessions": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.BySessions(s.alice), "walk")
	},
	"held": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.BySubject(s.alice).HeldBy(s.client), "walk")
	},
	"client": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.ByClient(s.client), "walk")
	},
	"disabled": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		_, err := by.Clients.Update(ctx, s.client, func(c *apitoken.Client) error { c.Disabled = true; return nil })
		return err
	},
	"grant": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.ByGrant(s.parent.Token.Grant()), "walk")
	},
	// The session makes room for others of the same subject. It is always the other process that opens them: this one would wait for
	// the call that is stopped. Of those that were used in the same millisecond any may be the one to end.
	"evicted": func(ctx context.Context, _ *apitoken.Service, s *scene) error {
		r := apitoken.Request{Subject: s.alice, Scopes: orders, Refresh: true}
		if s.client != "web" {
			r.Client = s.client
		}
		for range 100 {
			i, err := s.other.Issue(ctx, r)
			if err != nil {
				return err
			}
			s.standing = append(s.standing, i.Token.Grant())
			left := false
			for g, err := range s.other.Grants(ctx, apitoken.BySubject(s.alice), apitoken.Page{}) {
				if err != nil {
					return err
				}
				left = left || g.ID == s.parent.Token.Grant()
			}
			if !left {
				return nil
			}
		}
		return errors.New("a hundred logins did not end the session")
	},
	"token": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.ByToken(s.parent.Token.ID()), "walk")
	},
	"apikey": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.APIKeys.Revoke(ctx, s.key.ID, "walk")
	},
	"leaked": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		n, err := by.RevokeLeaked(ctx, []byte("found: "+s.leaked), "walk")
		if err == nil && n != 1 {
			err = fmt.Errorf("%d credentials found", n)
		}
		return err
	},
	"signing key": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		_, kid := signedBy(s.t, s.parent)
		return by.SigningKeys.Compromise(ctx, kid, "walk")
	},
	"owner": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.BySubject("org:"+s.alice), "walk")
	},
	"everything": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.Everything(), "walk")
	},
}

// walk is a call that makes something.
type walk struct {
	of   []string // the exported names that it goes through
	with func(*scene)
	make func(context.Context, *scene) (made, error)
	ends []string // of endings: what it stands on
	// outlives are those of ends that a thing which is there already survives: they count until its record is written.
	outlives []string
}

var (
	orders = apitoken.Scopes{"orders:read"}

	ofALogin      = []string{"subject", "sessions", "held", "client", "disabled", "everything"}
	ofHosts       = []string{"subject", "everything"}
	ofATicket     = append([]string{"leaked"}, ofALogin...)
	ofAToken      = append([]string{"grant", "evicted", "token", "leaked", "signing key"}, ofALogin...)
	ofAMember     = []string{"grant", "evicted", "token", "leaked", "sessions", "subject", "held"}
	ofASession    = []string{"grant", "evicted", "token", "leaked", "sessions"}
	ofAHostsToken = slices.DeleteFunc(slices.Clone(ofAToken), func(s string) bool { return s == "disabled" }) // the host is no client's record
	ofARefresh    = append([]string{"grant", "evicted", "leaked"}, ofALogin...)
)

// session opens one of alice's with the scene's client.
func (s *scene) session() {
	s.parent = issue(s.t, s.svc, apitoken.Request{Subject: s.alice, Client: s.client, Scopes: orders, Refresh: true})
	s.leaked = s.parent.Access.Reveal()
	s.standing = append(s.standing, s.parent.Token.Grant())
}

// hosts is a session of alice's with the host itself.
func (s *scene) hosts() {
	s.client = "web"
	s.parent = issue(s.t, s.svc, apitoken.Request{Subject: s.alice, Scopes: orders, Refresh: true})
	s.leaked = s.parent.Access.Reveal()
	s.standing = append(s.standing, s.parent.Token.Grant())
}

func (s *scene) refreshable() { s.session(); s.leaked = s.parent.Refresh.Reveal() }

func (s *scene) register(c apitoken.Client) {
	s.t.Helper()
	c.ID, c.Scopes = s.client, orders
	_, secret, err := s.svc.Clients.Create(context.Background(), c)
	require.NoError(s.t, err)
	s.auth = apitoken.ClientAuth{ID: c.ID, Secret: secret}
}

func (s *scene) public() {
	s.register(apitoken.Client{Public: true, GrantTypes: []string{"refresh_token", "authorization_code"}, RedirectURIs: []string{"https://app.example.com/cb"}})
}

func (s *scene) confidential() {
	s.register(apitoken.Client{MayImpersonate: true, RedirectURIs: []string{"https://app.example.com/cb"}, GrantTypes: []string{
		"refresh_token", "authorization_code", "client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"}})
}

func (s *scene) prepare() {
	var err error
	s.ticket, err = s.svc.Prepare(context.Background(), apitoken.Request{Subject: s.alice, Client: s.client, Scopes: orders, Refresh: true}, apitoken.Ticket{Lifetime: time.Hour})
	require.NoError(s.t, err)
	s.leaked = s.ticket.Reveal()
}

func (s *scene) ownKey() {
	key, secret, err := s.svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: s.alice, Scopes: orders, MaxUses: 9})
	require.NoError(s.t, err)
	s.key, s.leaked = key, secret.Reveal()
	s.standing = append(s.standing, key.ID)
}

func (s *scene) appsKey() {
	key, secret, err := s.svc.APIKeys.For(s.parent.Token).Create(context.Background(), apitoken.APIKeyRequest{Scopes: orders})
	require.NoError(s.t, err)
	s.key, s.leaked = key, secret.Reveal()
	s.standing = append(s.standing, key.ID)
}

func (s *scene) madeSecret(secret apitoken.Secret) made {
	return made{proofs: []func(*apitoken.Service) error{func(svc *apitoken.Service) error {
		_, err := svc.Clients.Authenticate(context.Background(), apitoken.ClientAuth{ID: s.client, Secret: secret})
		return err
	}}}
}

func setup(steps ...func(*scene)) func(*scene) {
	return func(s *scene) {
		for _, f := range steps {
			f(s)
		}
	}
}

// walks are all calls that make what authenticates somebody, by whatever they stand on.
var walks = map[string]walk{
	"a login": {of: []string{"Service.Issue"}, with: (*scene).public, ends: ofALogin,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Issue(ctx, apitoken.Request{Subject: s.alice, Client: s.client, Scopes: orders, Refresh: true}))
		}},
	"a login that began before": {of: []string{"Service.Issue", "Service.Begin"}, with: (*scene).public, ends: ofALogin,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Issue(s.svc.Begin(ctx), apitoken.Request{Subject: s.alice, Client: s.client, Scopes: orders, Refresh: true}))
		}},
	"a login without a session": {of: []string{"Service.Issue"}, with: (*scene).public, ends: ofALogin,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Issue(ctx, apitoken.Request{Subject: s.alice, Client: s.client, Scopes: orders}))
		}},
	"a client's own token": {of: []string{"Service.Issue"}, with: (*scene).confidential, ends: []string{"client", "disabled", "everything"},
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Issue(ctx, apitoken.Request{Auth: s.auth, Scopes: orders}))
		}},
	"a token under a session": {of: []string{"Service.Issue"}, with: setup((*scene).public, (*scene).refreshable), ends: ofARefresh,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Issue(ctx, apitoken.Request{Grant: s.parent.Token.Grant(), Scopes: orders}))
		}},
	"a refresh": {of: []string{"Service.Refresh"}, with: setup((*scene).public, (*scene).refreshable), ends: ofARefresh,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Refresh(ctx, apitoken.RefreshRequest{Token: s.parent.Refresh.Reveal(), Auth: s.auth}))
		}},
	"a refresh without rotation": {of: []string{"Service.Refresh"}, with: setup((*scene).confidential, (*scene).refreshable), ends: ofARefresh,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Refresh(ctx, apitoken.RefreshRequest{Token: s.parent.Refresh.Reveal(), Auth: s.auth}))
		}},
	"a repeated refresh": {of: []string{"Service.Refresh"}, ends: ofARefresh,
		with: setup((*scene).public, (*scene).refreshable, func(s *scene) { _, err := refreshAs(s.svc, s.auth, s.parent.Refresh, ""); require.NoError(s.t, err) }),
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Refresh(ctx, apitoken.RefreshRequest{Token: s.parent.Refresh.Reveal(), Auth: s.auth}))
		}},
	"an exchange": {of: []string{"Service.Exchange"}, with: setup((*scene).confidential, (*scene).session), ends: ofAToken,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(s.parent.Access.Reveal()), Auth: s.auth}))
		}},
	"an exchange of an API key": {of: []string{"Service.Exchange"}, with: setup((*scene).confidential, (*scene).ownKey),
		ends: []string{"apikey", "leaked", "subject", "client", "disabled", "everything"},
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(s.leaked), Auth: s.auth}))
		}},
	"an exchange by an actor": {of: []string{"Service.Exchange"}, with: setup((*scene).confidential, (*scene).session), ends: ofAToken,
		make: func(ctx context.Context, s *scene) (made, error) {
			user, err := s.svc.Issue(context.Background(), apitoken.Request{Subject: "user", Scopes: orders})
			if err != nil {
				return made{}, err
			}
			return madeOf(s.svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(user.Access.Reveal()), Actor: apitoken.Bearer(s.parent.Access.Reveal()), Auth: s.auth}))
		}},
	"a ticket": {of: []string{"Service.Prepare"}, with: (*scene).public, ends: ofALogin,
		make: func(ctx context.Context, s *scene) (made, error) {
			t, err := s.svc.Prepare(ctx, apitoken.Request{Subject: s.alice, Client: s.client, Scopes: orders, Refresh: true}, apitoken.Ticket{Lifetime: time.Hour})
			return made{tickets: []apitoken.Secret{t}}, err
		}},
	"a ticket that is redeemed": {of: []string{"Service.Redeem"}, with: setup((*scene).public, (*scene).prepare), ends: ofATicket,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Redeem(ctx, apitoken.Redemption{Ticket: s.ticket.Reveal(), Auth: s.auth}))
		}},
	"a ticket that a client redeems": {of: []string{"Service.Redeem"}, with: setup((*scene).confidential, (*scene).prepare), ends: ofATicket,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeOf(s.svc.Redeem(ctx, apitoken.Redemption{Ticket: s.ticket.Reveal(), Auth: s.auth}))
		}},
	"an API key of the host's": {of: []string{"APIKeys.Create"}, with: (*scene).public, ends: ofHosts,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeKey(s.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: s.alice, Scopes: orders}))
		}},
	"an API key of another program's": {of: []string{"APIKeys.Import"}, with: (*scene).public, ends: ofHosts,
		make: func(ctx context.Context, s *scene) (made, error) {
			key, x := oldKey("sha256", nil, s.alice)
			x.Scopes = orders
			_, err := s.svc.APIKeys.Import(ctx, slices.Values([]apitoken.ImportedKey{x}))
			return made{tokens: []apitoken.Secret{apitoken.NewSecret(key)}}, err
		}},
	"an API key by a token": {of: []string{"APIKeys.For", "APIKeys.Create"}, with: setup((*scene).public, (*scene).session), ends: ofAToken,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeKey(s.svc.APIKeys.For(s.parent.Token).Create(ctx, apitoken.APIKeyRequest{Scopes: orders}))
		}},
	"an API key on the host's pages": {of: []string{"APIKeys.For", "APIKeys.Create"}, with: setup((*scene).public, (*scene).hosts), ends: ofAHostsToken, outlives: ofASession,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeKey(s.svc.APIKeys.For(s.parent.Token).Create(ctx, apitoken.APIKeyRequest{Scopes: orders}))
		}},
	"a key of an owner's": {of: []string{"APIKeys.ForOwner", "APIKeys.Create"}, with: setup((*scene).public, (*scene).session),
		ends: append([]string{"owner"}, ofAToken...), outlives: ofAMember,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeKey(s.svc.APIKeys.ForOwner(s.parent.Token, "org:"+s.alice).Create(ctx, apitoken.APIKeyRequest{Scopes: orders}))
		}},
	"a key of an owner's on the host's pages": {of: []string{"APIKeys.ForOwner", "APIKeys.Create"}, with: setup((*scene).public, (*scene).hosts),
		ends: append([]string{"owner"}, ofAHostsToken...), outlives: ofAMember,
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeKey(s.svc.APIKeys.ForOwner(s.parent.Token, "org:"+s.alice).Create(ctx, apitoken.APIKeyRequest{Scopes: orders}))
		}},
	"a rotation on the host's pages": {of: []string{"APIKeys.For", "APIKeys.Rotate"}, with: setup((*scene).public, (*scene).hosts, (*scene).ownKey, func(s *scene) { s.leaked = s.parent.Access.Reveal() }),
		ends: append([]string{"apikey"}, ofAHostsToken...), outlives: append([]string{"apikey"}, ofASession...),
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeKey(s.svc.APIKeys.For(s.parent.Token).Rotate(ctx, s.key.ID, time.Hour))
		}},
	"a client's next secret": {of: []string{"Clients.RotateSecret"}, with: (*scene).confidential, ends: []string{"disabled"},
		make: func(ctx context.Context, s *scene) (made, error) {
			secret, err := s.svc.Clients.RotateSecret(ctx, s.client, time.Hour)
			return s.madeSecret(secret), err
		}},
	"a client that is changed": {of: []string{"Clients.Update"}, with: (*scene).confidential, ends: []string{"disabled"},
		make: func(ctx context.Context, s *scene) (made, error) {
			_, err := s.svc.Clients.Update(ctx, s.client, func(c *apitoken.Client) error { c.Name = "another"; return nil })
			return s.madeSecret(s.auth.Secret), err
		}},
	"a registration token": {of: []string{"Clients.RegistrationToken"}, with: (*scene).confidential, ends: []string{"disabled"},
		make: func(ctx context.Context, s *scene) (made, error) {
			secret, err := s.svc.Clients.RegistrationToken(ctx, s.client)
			return made{proofs: []func(*apitoken.Service) error{func(svc *apitoken.Service) error {
				_, err := svc.Clients.Registered(context.Background(), s.client, secret)
				return err
			}}}, err
		}},
	"a rotation of the host's": {of: []string{"APIKeys.Rotate"}, with: setup((*scene).public, (*scene).ownKey), ends: append([]string{"apikey", "leaked"}, ofHosts...), outlives: []string{"apikey", "leaked"},
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeKey(s.svc.APIKeys.Rotate(ctx, s.key.ID, time.Hour))
		}},
	"a rotation by a token": {of: []string{"APIKeys.For", "APIKeys.Rotate"}, with: setup((*scene).public, (*scene).session, (*scene).ownKey, func(s *scene) { s.leaked = s.parent.Access.Reveal() }),
		ends: append([]string{"apikey"}, ofAToken...), outlives: []string{"apikey"},
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeKey(s.svc.APIKeys.For(s.parent.Token).Rotate(ctx, s.key.ID, time.Hour))
		}},
	"a rotation of an application's key": {of: []string{"APIKeys.Rotate"}, with: setup((*scene).public, (*scene).session, (*scene).appsKey),
		ends: append([]string{"apikey"}, ofAToken...), outlives: []string{"apikey", "leaked"},
		make: func(ctx context.Context, s *scene) (made, error) {
			return madeKey(s.svc.APIKeys.Rotate(ctx, s.key.ID, time.Hour))
		}},
}

const sessionsOfOne = 3

func sceneConfig(s *scene, c *apitoken.Config) {
	c.KeyHashes = map[string]keyhash.Form{"sha256": keyhash.SHA256("sk_live_")}
	c.FirstParty = "web"
	c.Limits = apitoken.Limits{APIKeysPerSubject: 9, GrantsPerSubject: sessionsOfOne}
	c.MayContinue = func(ctx context.Context, _ apitoken.Grant) error {
		s.gate.place(ctx, "while the host is asked")
		return nil
	}
}

func newScene(t testing.TB) *scene {
	st := memstore.New()
	s := &scene{t: t, gate: &gate{Store: st}}
	s.svc = serviceOn(t, s.gate, func(c *apitoken.Config) { sceneConfig(s, c) })
	s.other = serviceOn(t, st, func(c *apitoken.Config) { sceneConfig(s, c) })
	return s
}

// later asks a process that starts now, and knows what the store holds.
func (s *scene) later(checks []func(*apitoken.Service)) {
	s.t.Helper()
	c := config(s.gate.Store)
	sceneConfig(s, &c)
	svc, err := apitoken.New(c)
	require.NoError(s.t, err)
	defer svc.Close()
	for _, f := range checks {
		f(svc)
	}
}

// walk makes what w says, stopped at its at-th place. reached is empty where it has fewer.
func (s *scene) walk(w *walk, ending string, at int, here bool) (reached string, m made, err error) {
	ctx := context.Background()
	s.n++
	s.alice, s.client, s.standing = fmt.Sprint("alice", s.n), fmt.Sprint("app", s.n), nil
	s.gate.arm(0, here, nil)
	w.with(s)
	require.NoError(s.t, s.other.Sync(ctx))
	require.NoError(s.t, s.svc.Sync(ctx))
	by := s.other
	if here {
		by = s.svc
	}
	s.gate.arm(at, here, func() { require.NoError(s.t, endings[ending](ctx, by, s)) })
	m, err = w.make(context.WithValue(ctx, walking{}, true), s)
	return s.gate.reached(), m, err
}

// alive is what of m, and of all else that was made of alice's, is good by svc.
func (s *scene) alive(m made, svc *apitoken.Service) (list []string) {
	s.t.Helper()
	ctx := context.Background()
	require.NoError(s.t, svc.Sync(ctx))
	for _, x := range m.tokens {
		if validate(svc, x) == nil {
			list = append(list, "a token")
		}
		if i, err := svc.Adapter().Introspect(ctx, x.Reveal()); err == nil && i.Active {
			list = append(list, "a token, by introspection")
		}
	}
	for _, x := range m.refresh {
		if _, err := refreshAs(svc, s.auth, x, ""); err == nil {
			list = append(list, "a refresh token")
		}
	}
	for _, x := range m.tickets {
		if _, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: x.Reveal(), Auth: s.auth}); err == nil {
			list = append(list, "a ticket")
		}
	}
	for _, f := range m.proofs {
		if f(svc) == nil {
			list = append(list, "a client")
		}
	}
	for g, err := range svc.Grants(ctx, apitoken.BySubject(s.alice), apitoken.Page{}) {
		require.NoError(s.t, err)
		if !slices.Contains(s.standing, g.ID) {
			list = append(list, "a session in the list")
		}
	}
	for k, err := range svc.APIKeys.Of(ctx, s.alice, apitoken.Page{}) {
		require.NoError(s.t, err)
		if !k.Revoked && !slices.Contains(s.standing, k.ID) {
			list = append(list, "an API key in the list")
		}
	}
	return list
}

func TestNothingOutlivesARevocationInTheMiddle(t *testing.T) {
	t.Parallel()
	for name, w := range walks {
		for _, ending := range w.ends {
			for _, here := range []bool{true, false} {
				where := map[bool]string{true: "in the same process", false: "in another process"}[here]
				t.Run(name+"/"+ending+" "+where, func(t *testing.T) {
					t.Parallel()
					s := newScene(t)
					places := 0
					var later []func(*apitoken.Service)
					for at := 1; ; at++ {
						reached, m, err := s.walk(&w, ending, at, here)
						if reached == "" {
							require.NoError(t, err, "nothing was revoked")
							require.NotEmpty(t, s.alive(m, s.svc), "nothing was revoked")
							break
						}
						places++
						if err != nil {
							require.True(t, slices.ContainsFunc([]error{apitoken.ErrInvalidGrant, apitoken.ErrInvalidToken, apitoken.ErrInvalidClient, apitoken.ErrDenied,
								apitoken.ErrUnavailable, apitoken.ErrNotFound}, func(class error) bool { return errors.Is(err, class) }), "%s: %+v", reached, err)
							m = made{}
						}
						if slices.Contains(w.outlives, ending) && s.gate.has("apikey") {
							continue
						}
						require.Empty(t, s.alive(m, s.svc), "%s: revoked %s, and good there", reached, where)
						require.Empty(t, s.alive(m, s.other), "%s: revoked %s, and good in another process", reached, where)
						then := *s
						later = append(later, func(svc *apitoken.Service) {
							require.Empty(t, then.alive(m, svc), "%s: revoked %s, and good in a process that starts later", reached, where)
						})
					}
					require.NotZero(t, places)
					s.later(later)
				})
			}
		}
	}
}

// noWalks are the other calls that take a context or give out a token or a credential, by why nothing has to die with a revocation in
// their middle.
var noWalks = map[string]string{
	"it confirms what is there, as it is at its end": `Service.Validate JWTValidator.Validate JWTValidator.Recheck Service.Recheck Token.Recheck Service.Explain
		JWTValidator.Explain Adapter.Introspect Service.Consume JWTValidator.Consume Adapter.Genuine Service.TargetOf Adapter.Check Adapter.Prove JWTValidator.Ready
		Authorize ParseWithClaims Clients.Authenticate Clients.Registered`,
	"it confirms a client, at which each call that is given its answer looks again": "Clients.Confirm",
	"it shows what is there, and no secret": `APIKeys.Get APIKeys.Find APIKeys.List APIKeys.Of APIKeys.Rename APIKeys.Edit Clients.Get Clients.Known Clients.List Clients.Secrets SigningKeys.List Service.Grants
		Service.Events Service.Event Service.EventPage Service.Usage Adapter.Note Service.Expiring Service.Unreadable Service.Revocations SigningKeys.JWKS`,
	"it takes power away": "Service.Revoke Service.RevokeLeaked APIKeys.Revoke SigningKeys.Compromise",
	"the host says so, whatever was before": `Clients.Create Clients.Register Clients.Reregister Clients.Adopt Clients.Keep Clients.Declare Service.SetRole SigningKeys.Import SigningKeys.ImportFor SigningKeys.Rotate
		SigningKeys.RotateSecrets SigningKeys.Rewrap Service.Repair Service.Remove NewToken NewSecret Bearer`,
	"it signs or keeps a text of the caller's, which authenticates nobody": `Adapter.SignIntrospection Adapter.ChangeNote Adapter.Once Adapter.DoOnce Service.Alert
		Adapter.Refused Service.Feed`,
	"it is about the caller's own context or process": "NewContext FromContext WithActor WithOrigin OriginOf Service.Sync Adapter.Wait",
}

// Every exported call that takes a context, and every one that gives out a token or a credential, is walked above, or says why it
// need not be.
func TestEveryCallThatMakesSomethingIsWalked(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	known := map[string]bool{}
	for _, w := range walks {
		for _, name := range w.of {
			known[name] = true
		}
	}
	for _, names := range noWalks {
		for _, name := range strings.Fields(names) {
			require.False(t, known[name], "%s is named twice", name)
			known[name] = true
		}
	}
	given := []string{"Issued", "Secret", "APIKey", "Token", "Client", "ClientAuth", "SigningKey", "Credential", "APIKeys"}
	names := func(list *ast.FieldList, of func(string) bool) (found bool) {
		if list == nil {
			return false
		}
		for _, x := range list.List {
			ast.Inspect(x.Type, func(n ast.Node) bool {
				id, ok := n.(*ast.Ident)
				found = found || ok && of(id.Name)
				return true
			})
		}
		return found
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		require.NoError(t, err)
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !fn.Name.IsExported() {
				continue
			}
			name := fn.Name.Name
			if fn.Recv != nil {
				of := strings.TrimPrefix(types.ExprString(fn.Recv.List[0].Type), "*")
				if !ast.IsExported(of) {
					continue
				}
				name = of + "." + name
			}
			asks := names(fn.Type.Params, func(s string) bool { return s == "Context" })
			gives := names(fn.Type.Results, func(s string) bool { return slices.Contains(given, s) })
			if asks || gives {
				require.True(t, known[name], "%s is in no walk: whatever it makes must not outlive a revocation that comes meanwhile", name)
			}
			delete(known, name)
		}
	}
	require.Empty(t, known, "there is no such call")
}
