package remote_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/freeport"
	"github.com/apitoken-go/apitoken/remote"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// journal keeps what a logger is told, and says when something comes.
type journal struct {
	mu    sync.Mutex
	lines []string
	came  chan struct{}
}

func newJournal() *journal { return &journal{came: make(chan struct{}, 1)} }

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, string(p))
	select {
	case j.came <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (j *journal) all() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, "")
}

// await waits for a line that holds text.
func (j *journal) await(t *testing.T, text string) {
	t.Helper()
	over := time.After(time.Minute)
	for !strings.Contains(j.all(), text) {
		select {
		case <-j.came:
		case <-over:
			t.Fatalf("the log never says %q:\n%s", text, j.all())
		}
	}
}

// guarded is an issuer behind a real TLS server.
type guarded struct {
	srv    *httptest.Server
	svc    *apitoken.Service
	auth   apitoken.ClientAuth
	front  atomic.Pointer[http.HandlerFunc] // answers in the issuer's place, when set
	reject apitoken.ClientAuth              // a client without FollowScope
}

func newGuarded(t *testing.T, host string) *guarded {
	t.Helper()
	s := &guarded{}
	var handler http.Handler
	s.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.front.Load(); f != nil {
			(*f)(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	s.srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // handshakes that fail on purpose
	_, port, err := net.SplitHostPort(s.srv.Listener.Addr().String())
	require.NoError(t, err)
	s.svc, err = apitoken.New(apitoken.Config{Issuer: "https://" + net.JoinHostPort(host, port), Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.svc.Close()) })
	handler = remote.Handler(s.svc)
	for id, scopes := range map[string]apitoken.Scopes{"orders": {remote.FollowScope}, "narrow": {"orders:read"}} {
		_, secret, err := s.svc.Clients.Create(t.Context(), apitoken.Client{ID: id, GrantTypes: []string{"client_credentials"}, Scopes: scopes})
		require.NoError(t, err)
		if id == "orders" {
			s.auth = apitoken.ClientAuth{ID: id, Secret: secret}
		} else {
			s.reject = apitoken.ClientAuth{ID: id, Secret: secret}
		}
	}
	s.srv.StartTLS()
	t.Cleanup(s.srv.Close)
	return s
}

// answers makes s answer every request so.
func (s *guarded) answers(f http.HandlerFunc) { s.front.Store(&f) }

// dial is a client whose TLS configuration was changed.
func (s *guarded) dial(change func(*tls.Config)) *http.Client {
	t := s.srv.Client().Transport.(*http.Transport).Clone()
	if change != nil {
		change(t.TLSClientConfig)
	}
	return &http.Client{Transport: t}
}

// A validator that can't follow its issuer says why: in its log, in Ready, in Explain and behind the ErrUnavailable of Validate,
// each cause by a class of its own, and never with the client's secret.
func TestWhyTheIssuerCannotBeFollowed(t *testing.T) {
	t.Parallel()
	loopback := "127.0.0.1"
	for _, x := range []struct {
		name   string
		host   string // of the issuer, where another one than 127.0.0.1
		change func(*testing.T, *guarded, *remote.Config)
		class  error
		says   string
	}{
		{"wrong secret", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			c.Client.Secret = apitoken.NewSecret(wrongSecret)
		}, remote.ErrClient, `feed: status 401: the ID "orders" or its secret is wrong`},
		{"unknown client", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			c.Client.ID = "oders"
		}, remote.ErrClient, `feed: status 401: the ID "oders" or its secret is wrong`},
		{"without the scope", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			c.Client = s.reject
		}, remote.ErrClient, `feed: status 403: the client "narrow" does not hold the scope apitoken:validate`},
		{"unknown authority", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			c.HTTP = s.dial(func(t *tls.Config) { t.RootCAs = nil })
		}, remote.ErrTLS, "certificate signed by unknown authority"},
		{"another host's certificate", "localhost", nil, remote.ErrTLS, "not localhost"},
		{"an expired certificate", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			c.HTTP = s.dial(func(t *tls.Config) {
				t.Time = func() time.Time { return s.srv.Certificate().NotAfter.AddDate(1, 0, 0) }
			})
		}, remote.ErrTLS, "the certificate's dates or this process's clock are wrong"},
		{"a clock far behind", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			c.HTTP = s.dial(func(t *tls.Config) {
				t.Time = func() time.Time { return s.srv.Certificate().NotBefore.AddDate(-1, 0, 0) }
			})
		}, remote.ErrClock, "the certificate's dates or this process's clock are wrong"},
		{"a server that refuses our certificate", loopback, func(t *testing.T, s *guarded, c *remote.Config) {
			srv := httptest.NewUnstartedServer(http.NotFoundHandler())
			srv.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert}
			srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			srv.StartTLS()
			t.Cleanup(srv.Close)
			c.Issuer = srv.URL
		}, remote.ErrTLS, "tls: certificate required"},
		{"no TLS", loopback, func(t *testing.T, s *guarded, c *remote.Config) {
			srv := httptest.NewServer(http.NotFoundHandler())
			t.Cleanup(srv.Close)
			c.Issuer = strings.Replace(srv.URL, "http:", "https:", 1)
		}, remote.ErrTLS, "server gave HTTP response to HTTPS client"},
		{"another path", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			c.Issuer += "/auth"
		}, remote.ErrNotIssuer, "metadata at /.well-known/oauth-authorization-server/auth: status 404"},
		{"another issuer's metadata", loopback, func(t *testing.T, s *guarded, c *remote.Config) {
			c.Issuer = strings.Replace(c.Issuer, "127.0.0.1", "example.com", 1)
			d := s.dial(nil)
			d.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, s.srv.Listener.Addr().String())
			}
			c.HTTP = d
		}, remote.ErrNotIssuer, "are another issuer's, not those of https://example.com:"},
		{"a page", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			s.answers(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>It works!</html>") })
		}, remote.ErrNotIssuer, "metadata at /.well-known/oauth-authorization-server are not JSON"},
		{"a redirect", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			s.answers(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login?secret=1", http.StatusFound) })
		}, remote.ErrNotIssuer, "status 302: a redirect, which is not followed"},
		{"an issuer without a store", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			s.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
		}, remote.ErrUnreachable, "status 503"},
		{"nobody there", loopback, func(t *testing.T, s *guarded, c *remote.Config) {
			port, err := freeport.New()
			require.NoError(t, err)
			c.Issuer = fmt.Sprintf("https://127.0.0.1:%d", port)
		}, remote.ErrUnreachable, "refused"},
		{"a transport that shows its requests", loopback, func(_ *testing.T, s *guarded, c *remote.Config) {
			inner := s.dial(nil).Transport
			c.HTTP = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				if !strings.HasSuffix(r.URL.Path, "revocations") {
					return inner.RoundTrip(r)
				}
				id, secret, _ := r.BasicAuth()
				return nil, fmt.Errorf("no route for %v of %s with %s", r.Header, id, secret)
			})}
		}, remote.ErrUnreachable, "no route for map[Authorization:[Basic …]] of orders with …"},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			s := newGuarded(t, x.host)
			logged := newJournal()
			cfg := remote.Config{Issuer: s.svc.Issuer(), Audience: "https://api.example.com", Client: s.auth, HTTP: s.dial(nil), Logger: logged.logger()}
			if x.change != nil {
				x.change(t, s, &cfg)
			}
			v, err := remote.NewValidator(cfg)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, v.Close()) })

			logged.await(t, "the issuer cannot be read")
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err = v.Ready(ctx)
			require.ErrorIs(t, err, apitoken.ErrUnavailable)
			require.ErrorContains(t, err, cfg.Issuer, "Ready is for the host alone: Error() says all")
			require.ErrorContains(t, err, x.says)
			var e *apitoken.Error
			require.ErrorAs(t, err, &e)
			for _, class := range []error{remote.ErrClient, remote.ErrTLS, remote.ErrClock, remote.ErrNotIssuer, remote.ErrUnreachable} {
				require.Equal(t, class == x.class, errors.Is(e.Cause, class), "%v: %v", class, e.Cause)
			}

			i, err := s.svc.Issue(t.Context(), apitoken.Request{Subject: "alice"})
			require.NoError(t, err)
			if s.svc.Issuer() == cfg.Issuer { // else its tokens are not this validator's
				x := x.says
				_, err = v.Validate(t.Context(), apitoken.Bearer(i.Access.Reveal()))
				require.ErrorIs(t, err, apitoken.ErrUnavailable)
				require.NotContains(t, err.Error(), x, "Validate's error may reach a client")
				require.Contains(t, fmt.Sprintf("%+v", err), x)
				steps := v.Explain(t.Context(), apitoken.Bearer(i.Access.Reveal()), apitoken.Requirement{}).Steps
				require.Contains(t, steps[len(steps)-1].Detail, x)
			}

			said := logged.all() + fmt.Sprintf("%+v", e)
			require.Contains(t, strings.ReplaceAll(said, `\"`, `"`), x.says)
			for _, secret := range []string{cfg.Client.Secret.Reveal(), s.auth.Secret.Reveal()} {
				require.NotContains(t, said, secret)
			}
			require.Less(t, strings.Count(logged.all(), "\n"), 4, "the same reason is logged once:\n%s", logged.all())
		})
	}
}

const wrongSecret = "at_cs_wrong-0123456789-0123456789"

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A server that takes the question and never answers is named too, before the question's own end.
func TestAnIssuerThatNeverAnswers(t *testing.T) {
	t.Parallel()
	s := newGuarded(t, "127.0.0.1")
	s.answers(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	v, err := remote.NewValidator(remote.Config{Issuer: s.svc.Issuer(), Audience: "https://api.example.com", Client: s.auth, HTTP: s.dial(nil)})
	require.NoError(t, err)
	defer v.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	require.ErrorContains(t, v.Ready(ctx), "no answer yet to the question sent at ")
}

// What was logged as broken is logged as mended, and what fails later is said again.
func TestAnOutageThatEnds(t *testing.T) {
	t.Parallel()
	s := newGuarded(t, "127.0.0.1")
	s.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	logged := newJournal()
	v, err := remote.NewValidator(remote.Config{Issuer: s.svc.Issuer(), Audience: "https://api.example.com", Client: s.auth, HTTP: s.dial(nil), Logger: logged.logger()})
	require.NoError(t, err)
	defer v.Close()
	logged.await(t, "status 502")
	s.front.Store(nil)
	require.NoError(t, v.Ready(t.Context()))
	logged.await(t, "the issuer can be read again")
	require.NoError(t, v.Ready(t.Context()))

	s.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	logged.await(t, "status 403")
}

// A clock that is far off stops no following where nothing checks a certificate by it. It makes good tokens look expired or too
// young, so the log and Explain name it.
func TestAClockThatIsFarOff(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name string
		off  time.Duration
		says string
		err  error
	}{
		{"behind", -3 * time.Hour, "behind the issuer's", apitoken.ErrInvalidToken},
		{"ahead", 3 * time.Hour, "ahead of the issuer's", apitoken.ErrExpired},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			s := newGuarded(t, "127.0.0.1")
			logged := newJournal()
			v, err := remote.NewValidator(remote.Config{Issuer: s.svc.Issuer(), Audience: "https://api.example.com", Client: s.auth, HTTP: s.dial(nil),
				Logger: logged.logger(), Now: func() time.Time { return time.Now().Add(x.off) }})
			require.NoError(t, err)
			defer v.Close()
			require.NoError(t, v.Ready(t.Context()))
			logged.await(t, x.says)

			i, err := s.svc.Issue(t.Context(), apitoken.Request{Subject: "alice"})
			require.NoError(t, err)
			explained := v.Explain(t.Context(), apitoken.Bearer(i.Access.Reveal()), apitoken.Requirement{})
			require.ErrorIs(t, explained.Err, x.err)
			last := explained.Steps[len(explained.Steps)-1]
			require.Equal(t, "expiry", last.Name)
			require.Regexp(t, `this process's clock is (3h0m1?[0-9]s|2h59m[45][0-9]s) `+x.says, last.Detail)
			require.Equal(t, 1, strings.Count(logged.all(), x.says), "once: %s", logged.all())
		})
	}
	t.Run("near enough", func(t *testing.T) {
		t.Parallel()
		s := newGuarded(t, "127.0.0.1")
		logged := newJournal()
		v, err := remote.NewValidator(remote.Config{Issuer: s.svc.Issuer(), Audience: "https://api.example.com", Client: s.auth, HTTP: s.dial(nil),
			Logger: logged.logger(), Now: func() time.Time { return time.Now().Add(-5 * time.Second) }})
		require.NoError(t, err)
		defer v.Close()
		require.NoError(t, v.Ready(t.Context()))
		require.Empty(t, logged.all())
	})
}
