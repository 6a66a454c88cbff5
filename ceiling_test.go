package apitoken_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// held is what a client and a user have before a ceiling comes down.
type held struct {
	auth    apitoken.ClientAuth
	session *apitoken.Issued // of alice at the client, with a role and for two audiences
	own     *apitoken.Issued // the same of the host itself
	code    apitoken.Secret
	self    apitoken.Secret // by which the client changes its own registration
}

// given is what somebody got.
type given struct {
	scopes    apitoken.Scopes
	audiences []string
}

var (
	readWrite = apitoken.Scopes{"orders:read", "orders:write"}
	both      = []string{testAudience, partner}
)

// ways are all in which something new is given.
var ways = map[string]func(context.Context, *apitoken.Service, *held) (*apitoken.Issued, error){
	"issue": func(ctx context.Context, svc *apitoken.Service, h *held) (*apitoken.Issued, error) {
		return svc.Issue(ctx, apitoken.Request{Subject: "alice", Client: "app", Roles: []string{"clerk"}, Audiences: both})
	},
	"own": func(ctx context.Context, svc *apitoken.Service, h *held) (*apitoken.Issued, error) {
		return svc.Issue(ctx, apitoken.Request{Auth: h.auth, Scopes: readWrite, Audiences: both})
	},
	"redeem": func(ctx context.Context, svc *apitoken.Service, h *held) (*apitoken.Issued, error) {
		return svc.Redeem(ctx, apitoken.Redemption{Ticket: h.code.Reveal(), Auth: h.auth})
	},
	"refresh": func(ctx context.Context, svc *apitoken.Service, h *held) (*apitoken.Issued, error) {
		return svc.Refresh(ctx, apitoken.RefreshRequest{Token: h.session.Refresh.Reveal(), Auth: h.auth})
	},
	"under a grant": func(ctx context.Context, svc *apitoken.Service, h *held) (*apitoken.Issued, error) {
		return svc.Issue(ctx, apitoken.Request{Grant: h.session.Token.Grant()})
	},
	"exchange": func(ctx context.Context, svc *apitoken.Service, h *held) (*apitoken.Issued, error) {
		return svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(h.own.Access.Reveal()), Auth: h.auth})
	},
}

// key makes an API key by the session's token.
func (h *held) key(ctx context.Context, svc *apitoken.Service) (apitoken.APIKey, error) {
	caller, err := svc.Validate(ctx, apitoken.Bearer(h.session.Access.Reveal()))
	if err != nil {
		return apitoken.APIKey{}, err
	}
	k, _, err := svc.APIKeys.For(caller).Create(ctx, apitoken.APIKeyRequest{Name: "ci", Scopes: readWrite})
	return k, err
}

// register has the client ask for a registration with more than it may have now.
func (h *held) register(ctx context.Context, svc *apitoken.Service) (apitoken.Client, error) {
	return svc.Clients.Reregister(ctx, "app", h.self, func(c *apitoken.Client) error { c.Scopes = readWrite; return nil })
}

// Whoever has a say in what may be given is heard in each way in which something is given, also for what was begun before.
func TestEachCeilingHoldsForEachGrant(t *testing.T) {
	t.Parallel()
	read := apitoken.Scopes{"orders:read"}
	here := []string{testAudience}
	all := given{readWrite, both}
	update := func(f func(*apitoken.Client)) func(context.Context, *apitoken.Service) error {
		return func(ctx context.Context, svc *apitoken.Service) error {
			_, err := svc.Clients.Update(ctx, "app", func(c *apitoken.Client) error { f(c); return nil })
			return err
		}
	}
	role := func(scopes ...apitoken.Scope) func(context.Context, *apitoken.Service) error {
		return func(ctx context.Context, svc *apitoken.Service) error { return svc.SetRole(ctx, "clerk", scopes) }
	}
	no := errors.New("she has left")
	for name, x := range map[string]struct {
		config    func(*apitoken.Config) // of the next start
		change    func(context.Context, *apitoken.Service) error
		want      given            // where nothing else is said
		gives     map[string]given // by way
		errs      map[string]error
		registers apitoken.Scopes // nil: all
	}{
		"none": {want: all},
		"the client's scopes": {
			change:    update(func(c *apitoken.Client) { c.Scopes = apitoken.Scopes{"orders:read", "reports"} }),
			want:      given{read, both},
			errs:      map[string]error{"own": apitoken.ErrInvalidScope, "key": apitoken.ErrInvalidToken},
			registers: read, // the rest is left out (RFC 7591 §2)
		},
		"the client's audiences": {
			change: update(func(c *apitoken.Client) { c.Audiences = here }),
			want:   given{readWrite, here},
			errs:   map[string]error{"issue": apitoken.ErrInvalidTarget, "own": apitoken.ErrInvalidTarget, "redeem": apitoken.ErrInvalidTarget, "key": apitoken.ErrInvalidToken},
		},
		"the role": {
			change: role("orders:read"),
			want:   given{read, both},
			gives:  map[string]given{"own": all},
			errs:   map[string]error{"exchange": apitoken.ErrInvalidToken, "key": apitoken.ErrInvalidToken},
		},
		"a role that grew, which is for new logins alone": {
			change: role("orders:read", "orders:write", "reports"),
			want:   all,
			gives: map[string]given{"issue": {apitoken.Scopes{"orders:read", "orders:write", "reports"}, both},
				"redeem": {apitoken.Scopes{"orders:read", "orders:write", "reports"}, both}},
		},
		"Config.Scopes": {
			config: func(c *apitoken.Config) {
				c.Scopes = map[apitoken.Scope]string{"orders:read": "", "reports": ""}
				c.Roles = nil
			},
			want: given{read, both},
			errs: map[string]error{"own": apitoken.ErrInvalidScope, "key": apitoken.ErrInvalidScope, "registration": apitoken.ErrInvalidScope},
		},
		"Config.Audiences": {
			config: func(c *apitoken.Config) { c.Audiences = nil },
			want:   given{readWrite, here},
			errs:   map[string]error{"issue": apitoken.ErrInvalidTarget, "own": apitoken.ErrInvalidTarget, "redeem": apitoken.ErrInvalidTarget},
		},
		"Config.MayContinue": {
			config: func(c *apitoken.Config) { c.MayContinue = func(context.Context, apitoken.Grant) error { return no } },
			want:   all, // a login, and a client's own token, is no continuation
			errs: map[string]error{"redeem": apitoken.ErrInvalidGrant, "refresh": apitoken.ErrInvalidGrant, "under a grant": apitoken.ErrInvalidGrant,
				"exchange": apitoken.ErrInvalidGrant, "key": apitoken.ErrDenied},
		},
	} {
		for _, lists := range []bool{true, false} { // whether the client names its audiences
			if !lists && name == "the client's audiences" {
				continue
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				ctx := context.Background()
				c := config(memstore.New())
				c.Audiences = []string{partner}
				c.Roles = map[string]apitoken.Scopes{"clerk": readWrite}
				svc, err := apitoken.New(c)
				require.NoError(t, err)
				app := apitoken.Client{ID: "app", GrantTypes: []string{"client_credentials", "refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange"},
					Scopes: apitoken.Scopes{"orders:read", "orders:write", "reports"}, MayImpersonate: true}
				if lists {
					app.Audiences = both
				}
				_, secret, err := svc.Clients.Create(ctx, app)
				require.NoError(t, err)
				h := &held{auth: apitoken.ClientAuth{ID: "app", Secret: secret}}
				req := apitoken.Request{Subject: "alice", Client: "app", Roles: []string{"clerk"}, Audiences: both, Refresh: true}
				h.session = issue(t, svc, req)
				h.code, err = svc.Prepare(ctx, req, apitoken.Ticket{Lifetime: time.Minute})
				require.NoError(t, err)
				req.Client, req.Refresh = "", false
				h.own = issue(t, svc, req)

				h.self, err = svc.Clients.RegistrationToken(ctx, "app")
				require.NoError(t, err)

				if x.change != nil {
					require.NoError(t, x.change(ctx, svc))
				}
				if x.config != nil {
					require.NoError(t, svc.Close())
					x.config(&c)
					svc, err = apitoken.New(c)
					require.NoError(t, err)
				}
				defer svc.Close()
				if want, ok := x.errs["key"]; ok {
					_, err := h.key(ctx, svc)
					require.ErrorIs(t, err, want)
				} else {
					k, err := h.key(ctx, svc)
					require.NoError(t, err)
					require.Equal(t, x.want.scopes, k.Scopes)
				}
				for way, give := range ways {
					i, err := give(ctx, svc, h)
					if want, ok := x.errs[way]; ok {
						require.ErrorIs(t, err, want, way)
						continue
					}
					require.NoError(t, err, way)
					want, ok := x.gives[way]
					if !ok {
						want = x.want
					}
					require.Equal(t, want, given{i.Token.Scopes(), i.Token.Audiences()}, way)
				}
				before, err := svc.Clients.Get(ctx, "app")
				require.NoError(t, err)
				after, err := h.register(ctx, svc)
				if want, ok := x.errs["registration"]; ok {
					require.ErrorIs(t, err, want, "registration")
					after, err = svc.Clients.Get(ctx, "app")
					require.NoError(t, err)
					require.Equal(t, before, after, "a registration that asks for too much changes nothing")
				} else {
					require.NoError(t, err, "registration")
					want := x.registers
					if want == nil {
						want = readWrite
					}
					require.Equal(t, want, after.Scopes)
					require.Equal(t, before.Audiences, after.Audiences)
				}
			})
		}
	}
}

// A service that is asked for something else exchanges a token without naming where it will be used: the token's audience is no
// way around what the client may ask for.
func TestAnExchangeThatNamesNoResource(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, func(c *apitoken.Config) { c.Audiences = []string{partner, legacy} })
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "gw", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}, Scopes: apitoken.Scopes{"orders"},
		Audiences: []string{partner}, MayImpersonate: true})
	require.NoError(t, err)
	exchange := func(r apitoken.Request, named ...string) ([]string, error) {
		r.Subject, r.Scopes = "alice", apitoken.Scopes{"orders"}
		i, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(issue(t, svc, r).Access.Reveal()), Audiences: named,
			Auth: apitoken.ClientAuth{ID: "gw", Secret: secret}})
		if err != nil {
			return nil, err
		}
		return i.Token.Audiences(), nil
	}
	aud, err := exchange(apitoken.Request{Audiences: []string{legacy, partner}})
	require.NoError(t, err)
	require.Equal(t, []string{partner}, aud)
	_, err = exchange(apitoken.Request{Audiences: []string{legacy}})
	require.ErrorIs(t, err, apitoken.ErrInvalidTarget)
	aud, err = exchange(apitoken.Request{Audiences: []string{legacy}}, partner)
	require.NoError(t, err)
	require.Equal(t, []string{partner}, aud)
}

// The host is asked about the user, and the user who acts, and not about clients.
func TestMayContinueAtAnExchange(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var asked []string
	refuse := ""
	svc := service(t, func(c *apitoken.Config) {
		c.MayContinue = func(_ context.Context, g apitoken.Grant) error {
			asked = append(asked, g.Subject)
			require.Equal(t, "gw", g.Client)
			require.Equal(t, apitoken.Scopes{"orders"}, g.Scopes)
			if g.Subject == refuse {
				return errors.New("has left")
			}
			return nil
		}
	})
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "gw", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"},
		Scopes: apitoken.Scopes{"orders"}, MayImpersonate: true})
	require.NoError(t, err)
	auth := apitoken.ClientAuth{ID: "gw", Secret: secret}
	user := func(name string) apitoken.Credential {
		return apitoken.Bearer(issue(t, svc, apitoken.Request{Subject: name, Scopes: apitoken.Scopes{"orders"}}).Access.Reveal())
	}
	own := apitoken.Bearer(issue(t, svc, apitoken.Request{Auth: auth, Scopes: apitoken.Scopes{"orders"}}).Access.Reveal())
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{"orders"}, MaxUses: 1})
	require.NoError(t, err)
	for _, x := range []struct {
		token, actor apitoken.Credential
		refuse       string
		asked        []string
		err          error
	}{
		{user("alice"), apitoken.Credential{}, "", []string{"alice"}, nil},
		{user("alice"), own, "", []string{"alice"}, nil},
		{user("alice"), user("bob"), "", []string{"alice", "bob"}, nil},
		{own, apitoken.Credential{}, "", nil, nil},
		{user("alice"), user("bob"), "alice", []string{"alice"}, apitoken.ErrInvalidGrant},
		{user("alice"), user("bob"), "bob", []string{"alice", "bob"}, apitoken.ErrInvalidGrant},
		{apitoken.Bearer(key.Reveal()), apitoken.Credential{}, "alice", []string{"alice"}, apitoken.ErrInvalidGrant},
		{apitoken.Bearer(key.Reveal()), apitoken.Credential{}, "", []string{"alice"}, nil}, // its one use was not spent
	} {
		asked, refuse = nil, x.refuse
		_, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: x.token, Actor: x.actor, Auth: auth})
		require.ErrorIs(t, err, x.err)
		require.Equal(t, x.asked, asked)
	}
}
