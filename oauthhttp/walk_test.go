package oauthhttp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// The rule that this test holds, for each endpoint that makes something: nothing that a request makes is good, where what it stands on
// was revoked while the request ran. The requests are stopped while their body comes in, before and after each read and write of the
// store, and where the host is asked.

// walking marks the context of the request that is stopped.
type walking struct{}

// gate is a store that stops a marked request at the place whose number is at, until do is done.
type gate struct {
	store.Store
	mu    sync.Mutex // guards all below
	count int
	at    int
	do    func()
	where string // the place that was reached
}

func (g *gate) arm(at int, do func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count, g.at, g.do, g.where = 0, at, do, ""
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
	g.where, g.do = what, nil
	g.mu.Unlock()
	do()
}

func (g *gate) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	g.place(ctx, "before a read of a "+string(k))
	defer g.place(ctx, "after a read of a "+string(k))
	return g.Store.Get(ctx, k, id)
}

func (g *gate) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	what := "events"
	if len(c.Puts) > 0 {
		what = string(c.Puts[0].Kind)
	}
	g.place(ctx, "before a write of "+what)
	defer g.place(ctx, "after a write of "+what)
	return g.Store.Apply(ctx, c)
}

// body is a request's, whose first part comes late.
type body struct {
	io.Reader
	late func()
}

func (b *body) Read(p []byte) (int, error) {
	if b.late != nil {
		b.late()
		b.late = nil
	}
	return b.Reader.Read(p)
}

func (b *body) Close() error { return nil }

// scene is two processes on one store, and who is in it.
type scene struct {
	*site
	other  *site
	gate   *gate
	signer *signer

	// Anew for each place.
	alice, app string
	parent     *answer // of the token endpoint
	key        apitoken.APIKey
	secret     apitoken.Secret
	user       string // a device's user code
	device     string
	code       string
}

func newScene(t testing.TB) *scene {
	s := &scene{signer: newSigner(t)}
	at := &clock{from: time.Now()}
	inner := memstore.NewWithClock(at.Now)
	s.gate = &gate{Store: inner}
	change := func(c *apitoken.Config, o *oauthhttp.Options) {
		c.MayContinue = func(ctx context.Context, _ apitoken.Grant) error {
			s.gate.place(ctx, "while the host is asked")
			return nil
		}
		o.Registration = &oauthhttp.Registration{GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders:read"},
			Check: func(ctx context.Context, _ apitoken.Token, _ *apitoken.Client) error {
				s.gate.place(ctx, "while Check decides")
				return nil
			}}
		o.Assertions = []oauthhttp.AssertionIssuer{{Issuer: login, Keys: s.signer, Subject: func(ctx context.Context, a oauthhttp.Assertion) (oauthhttp.Identity, error) {
			s.gate.place(ctx, "while Subject decides")
			return oauthhttp.Identity{Subject: a.Subject, Scopes: oauthhttp.Only("orders:read")}, nil
		}}}
		o.Consent = oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
			// From here on somebody has confirmed who they are.
			s.h.Approve(w, r.WithContext(context.WithValue(r.Context(), walking{}, true)), a, oauthhttp.Approval{Subject: s.alice, Scopes: oauthhttp.All()})
		})
	}
	s.site = &site{t: t, at: at, secrets: map[string]string{}, st: &failing{Store: s.gate}}
	s.start(change)
	s.other = &site{t: t, at: at, secrets: s.secrets, st: &failing{Store: inner}}
	s.other.start(change)
	return s
}

// stopped marks a request and makes its body come late.
func (s *scene) stopped(r *http.Request) {
	*r = *r.WithContext(context.WithValue(r.Context(), walking{}, true))
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &body{r.Body, func() { s.gate.place(r.Context(), "while the body comes in") }}
	}
}

func (s *scene) query(more ...string) url.Values {
	return merge(params("client_id", s.app, "response_type", "code", "redirect_uri", callback, "scope", "orders:read",
		"code_challenge", challengeOf(verifier), "code_challenge_method", "S256"), more...)
}

// authorize is a browser with a query; its code is empty where there is none.
func (s *scene) authorize(v url.Values) string {
	u, err := url.Parse(s.get("/authorize?" + v.Encode()).Header.Get("Location"))
	require.NoError(s.t, err)
	return u.Query().Get("code")
}

func (s *scene) redeem(code string, options ...option) *answer {
	return s.token(params("grant_type", "authorization_code", "code", code, "code_verifier", verifier, "redirect_uri", callback), append(options, s.as(s.app))...)
}

func (s *scene) poll(options ...option) *answer {
	return s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "device_code", s.device), append(options, s.as(s.app))...)
}

func (s *scene) begin(options ...option) *answer {
	return s.post("/device_authorization", params("scope", "orders:read"), append(options, s.as(s.app))...)
}

func (s *scene) approve(ctx context.Context) error {
	d, err := s.h.Device(context.Background(), s.user)
	if err != nil {
		return err
	}
	return s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: s.alice, Scopes: oauthhttp.All()})
}

func (s *scene) waits() {
	a := s.begin().ok()
	s.user, s.device = a.text("user_code"), a.text("device_code")
}

func (s *scene) approved() { s.waits(); require.NoError(s.t, s.approve(context.Background())) }
func (s *scene) coded()    { s.code = s.authorize(s.query()); require.NotEmpty(s.t, s.code) }
func (s *scene) session()  { s.coded(); s.parent = s.redeem(s.code).ok() }

func (s *scene) registrar() {
	var err error
	s.key, s.secret, err = s.svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: s.alice, Scopes: apitoken.Scopes{oauthhttp.RegisterScope}})
	require.NoError(s.t, err)
}

// good reports whether an answer's token is, in either process.
func (s *scene) good(a *answer) bool {
	if a == nil || a.StatusCode != http.StatusOK {
		return false
	}
	for _, x := range []*site{s.site, s.other} {
		require.NoError(s.t, x.svc.Sync(context.Background()))
		if _, err := x.svc.Validate(context.Background(), apitoken.Bearer(a.text("access_token"))); err == nil {
			return true
		}
	}
	if refresh := a.body["refresh_token"]; refresh != nil {
		return s.token(params("grant_type", "refresh_token", "refresh_token", refresh.(string)), s.as(s.app)).StatusCode == http.StatusOK
	}
	return false
}

var walkEnds = map[string]func(context.Context, *apitoken.Service, *scene) error{
	"subject": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.BySubject(s.alice), "walk")
	},
	"client": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.ByClient(s.app), "walk")
	},
	"disabled": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		_, err := by.Clients.Update(ctx, s.app, func(c *apitoken.Client) error { c.Disabled = true; return nil })
		return err
	},
	"session": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		_, err := by.RevokeLeaked(ctx, []byte(s.parent.text("refresh_token")), "walk")
		return err
	},
	"token": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		_, err := by.RevokeLeaked(ctx, []byte(s.parent.text("access_token")), "walk")
		return err
	},
	"key": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.APIKeys.Revoke(ctx, s.key.ID, "walk")
	},
	"everything": func(ctx context.Context, by *apitoken.Service, s *scene) error {
		return by.Revoke(ctx, apitoken.Everything(), "walk")
	},
}

// endpointWalks are the requests that make something. make runs one that is stopped, and returns what tells whether what it made is
// good.
var endpointWalks = map[string]struct {
	with func(*scene)
	make func(*scene) (good func() bool)
	ends []string
}{
	"a code": {make: func(s *scene) func() bool {
		code := s.authorize(s.query())
		return func() bool { return code != "" && s.good(s.redeem(code)) }
	}, ends: []string{"subject", "client", "disabled", "everything"}},
	"a pushed request": {make: func(s *scene) func() bool {
		a := s.post("/par", s.query(), s.as(s.app), s.stopped)
		return func() bool {
			if a.StatusCode != http.StatusCreated {
				return false
			}
			code := s.authorize(params("client_id", s.app, "request_uri", a.text("request_uri")))
			return code != "" && s.good(s.redeem(code))
		}
	}, ends: []string{"client", "disabled", "everything"}},
	"a code of a pushed request": {
		with: func(s *scene) { s.code = s.post("/par", s.query(), s.as(s.app)).ok().text("request_uri") },
		make: func(s *scene) func() bool {
			code := s.authorize(params("client_id", s.app, "request_uri", s.code))
			return func() bool { return code != "" && s.good(s.redeem(code)) }
		}, ends: []string{"subject", "client", "disabled", "everything"}},
	"a device's request": {make: func(s *scene) func() bool {
		a := s.begin(s.stopped)
		return func() bool {
			if a.StatusCode != http.StatusOK {
				return false
			}
			s.user, s.device = a.text("user_code"), a.text("device_code")
			return s.approve(context.Background()) == nil && s.good(s.poll())
		}
	}, ends: []string{"client", "disabled", "everything"}},
	"an approved device": {with: (*scene).waits, make: func(s *scene) func() bool {
		err := s.approve(context.WithValue(context.Background(), walking{}, true))
		return func() bool { return err == nil && s.good(s.poll()) }
	}, ends: []string{"subject", "client", "disabled", "everything"}},
	"a device's tokens": {with: (*scene).approved, make: func(s *scene) func() bool {
		a := s.poll(s.stopped)
		return func() bool { return s.good(a) }
	}, ends: []string{"subject", "client", "disabled", "everything"}},
	"a device's tokens again": {with: func(s *scene) { s.approved(); s.poll().ok() }, make: func(s *scene) func() bool {
		a := s.poll(s.stopped)
		return func() bool { return s.good(a) }
	}, ends: []string{"subject", "client", "disabled", "everything"}},
	"a code's tokens": {with: (*scene).coded, make: func(s *scene) func() bool {
		a := s.redeem(s.code, s.stopped)
		return func() bool { return s.good(a) }
	}, ends: []string{"subject", "client", "disabled", "everything"}},
	"a refresh": {with: (*scene).session, make: func(s *scene) func() bool {
		a := s.token(params("grant_type", "refresh_token", "refresh_token", s.parent.text("refresh_token")), s.as(s.app), s.stopped)
		return func() bool { return s.good(a) }
	}, ends: []string{"subject", "client", "disabled", "session", "everything"}},
	"an exchange": {with: (*scene).session, make: func(s *scene) func() bool {
		a := s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token_type", "urn:ietf:params:oauth:token-type:access_token",
			"subject_token", s.parent.text("access_token")), s.as(s.app), s.stopped)
		return func() bool { return s.good(a) }
	}, ends: []string{"subject", "client", "disabled", "session", "token", "everything"}},
	"an assertion's token": {make: func(s *scene) func() bool {
		a := s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(s.signer, nil, map[string]any{"sub": s.alice})), s.as(s.app), s.stopped)
		return func() bool { return s.good(a) }
	}, ends: []string{"subject", "client", "disabled", "everything"}},
	"a client's own token": {make: func(s *scene) func() bool {
		a := s.token(params("grant_type", "client_credentials", "scope", "orders:read"), s.as(s.app), s.stopped)
		return func() bool { return s.good(a) }
	}, ends: []string{"client", "disabled", "everything"}},
	"a registration": {with: (*scene).registrar, make: func(s *scene) func() bool {
		doc, err := json.Marshal(map[string]any{"grant_types": []string{"client_credentials"}, "token_endpoint_auth_method": "client_secret_post"})
		require.NoError(s.t, err)
		r := formRequest("/register", string(doc))
		r.Header.Set("Content-Type", "application/json")
		a := s.do(r, header("Authorization", "Bearer "+s.secret.Reveal()), s.stopped)
		return func() bool {
			if a.StatusCode == http.StatusCreated {
				return true
			}
			for c, err := range s.svc.Clients.List(context.Background(), apitoken.Page{}) {
				require.NoError(s.t, err)
				if strings.HasPrefix(c.ID, "cl_") && !c.Disabled {
					return true
				}
			}
			return false
		}
	}, ends: []string{"subject", "key", "everything"}},
}

func TestNoRequestOutlivesARevocationInItsMiddle(t *testing.T) {
	t.Parallel()
	for name, w := range endpointWalks {
		for _, ending := range w.ends {
			for _, here := range []bool{true, false} {
				where := map[bool]string{true: "in the same process", false: "in another process"}[here]
				t.Run(name+"/"+ending+" "+where, func(t *testing.T) {
					t.Parallel()
					s := newScene(t)
					by := s.other.svc
					if here {
						by = s.svc
					}
					for at := 1; ; at++ {
						s.alice, s.app = fmt.Sprint("alice", at), fmt.Sprint("app", at)
						s.gate.arm(0, nil)
						s.client(s.app, nil)
						if w.with != nil {
							w.with(s)
						}
						require.NoError(t, s.svc.Sync(context.Background()))
						require.NoError(t, s.other.svc.Sync(context.Background()))
						s.gate.arm(at, func() { require.NoError(t, walkEnds[ending](context.Background(), by, s)) })
						good := w.make(s)
						reached := s.gate.where
						s.gate.arm(0, nil)
						if reached == "" {
							require.True(t, good(), "nothing was revoked")
							require.Greater(t, at, 1)
							return
						}
						require.False(t, good(), "%s: revoked %s", reached, where)
					}
				})
			}
		}
	}
}

// Each path that takes a POST is walked, or makes nothing.
func TestEveryEndpointIsWalked(t *testing.T) {
	t.Parallel()
	paths := newScene(t).h.Paths()
	for _, known := range []string{"/authorize", "/par", "/device_authorization", "/token", "/register"} {
		at := slices.IndexFunc(paths, func(p string) bool { return strings.HasSuffix(strings.TrimSuffix(p, "/"), known) })
		require.GreaterOrEqual(t, at, 0, known)
		paths = slices.Delete(paths, at, at+1)
	}
	for _, p := range paths {
		require.Regexp(t, `/(revoke|introspect|jwks\.json|register/\{client\}|openapi\.json|revocations|oauth-authorization-server.*|openid-configuration.*)$`, p, "is in no walk, if it makes anything")
	}
}
