package remote_test

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/remote"
)

// junkKeys are texts that a stranger can make: of every wrong shape, and of the right shape and checksum, which are public,
// with a tag or under a root of the stranger's own.
func junkKeys(t testing.TB, good string, n int) (list []string) {
	t.Helper()
	was, err := opaque.DecodeKey(good, "at", opaque.APIKey)
	require.NoError(t, err)
	for i := range n {
		x := *was
		rand.Read(x.ID[:])
		rand.Read(x.Secret[:])
		rand.Read(x.Tag[:])
		if i%2 == 0 {
			rand.Read(x.KID[:])
		}
		list = append(list, opaque.EncodeKey("at", opaque.APIKey, &x), opaque.EncodeKey("zz", opaque.APIKey, &x), "at_ak_"+hex.EncodeToString(x.Secret[:]))
	}
	return append(list, "at_ak_\x80", "at_ak_", good[:len(good)-1], good+"0", "at_ak_"+strings.Repeat("A", 8000))
}

// Strangers send junk API keys on a hundred connections. The issuer is not asked about any, and holders of good keys that this
// process has not seen yet are answered meanwhile.
func TestJunkAPIKeysCostTheIssuerNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	// A hundred busy loops on two processors may keep the follower waiting for seconds: the view's age is not tested here.
	v := s.validator(t, func(c *remote.Config) { c.Validation.MaxStaleness = 5 * time.Minute })
	ready(t, v)
	var good []string
	for range 50 {
		_, secret, err := s.svc.APIKeys.Create(s.ctx, apitoken.APIKeyRequest{Subject: "bob"})
		require.NoError(t, err)
		good = append(good, secret.Reveal())
	}
	junk := junkKeys(t, good[0], 200)
	for _, text := range junk {
		_, err := v.Validate(s.ctx, apitoken.Bearer(text))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken, "%q", text)
	}
	require.Zero(t, s.count("/apitoken/introspect"))

	var wg sync.WaitGroup
	stop := make(chan struct{})
	var wrong atomic.Int64
	for range 100 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := v.Validate(s.ctx, apitoken.Bearer(junk[i%len(junk)])); !errors.Is(err, apitoken.ErrInvalidToken) {
					wrong.Add(1)
				}
				runtime.Gosched() // as a connection does between its requests
			}
		})
	}
	for _, text := range good {
		_, err := v.Validate(s.ctx, apitoken.Bearer(text))
		require.NoError(t, err)
	}
	close(stop)
	wg.Wait()
	require.Zero(t, wrong.Load())
	require.LessOrEqual(t, s.count("/apitoken/introspect"), int64(2*len(good)), "a change of another key may void an answer under way")
}

// After the issuer has made a new root secret, keys under the old one and under the new one are told from junk.
func TestANewRootSecretReachesValidators(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	v := s.validator(t, nil)
	ready(t, v)
	require.NoError(t, s.svc.SigningKeys.RotateSecrets(s.ctx))
	_, secret, err := s.svc.APIKeys.Create(s.ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	eventually(t, "the key is good", func() bool {
		_, err := v.Validate(s.ctx, apitoken.Bearer(secret.Reveal()))
		return err == nil
	})
	view, err := s.svc.Revocations(s.ctx, v.Freshness().Position, 0)
	require.NoError(t, err)
	require.Len(t, view.APIKeyTags, 2, "known ahead of its use")
}

// verdicts are all ways in which an API may ask about a credential.
type verdicts struct {
	s     *site
	names []string
	ways  []func(string) error
}

func newVerdicts(t testing.TB) *verdicts {
	t.Helper()
	s := newSite(t, nil)
	h, err := oauthhttp.New(s.svc, nil)
	require.NoError(t, err)
	both := http.NewServeMux() // the metadata and the introspection of oauthhttp
	both.Handle("/", h)
	front := httptest.NewServer(both)
	t.Cleanup(front.Close)
	c := &http.Client{Transport: elsewhere{to: front.Listener.Addr().String()}}
	plain, standard := s.validator(t, nil), s.validator(t, func(cfg *remote.Config) { cfg.HTTP = c })
	ready(t, plain)
	ready(t, standard)
	x := &verdicts{s: s}
	add := func(name string, way func(string) error) {
		x.names, x.ways = append(x.names, name), append(x.ways, way)
	}
	for _, v := range []struct {
		name string
		v    apitoken.Validator
	}{{"service", s.svc}, {"remote", plain}, {"oauthhttp", standard}} {
		add(v.name, func(text string) error {
			_, err := v.v.Validate(s.ctx, apitoken.Bearer(text))
			return err
		})
		guarded := httpauth.New(v.v, nil).Authenticated(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
		add("middleware over "+v.name, func(text string) error {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Authorization", "Bearer "+text)
			w := httptest.NewRecorder()
			guarded.ServeHTTP(w, r)
			switch w.Code {
			case http.StatusOK:
				return nil
			case http.StatusBadRequest, http.StatusUnauthorized:
				return apitoken.ErrInvalidToken
			}
			return apitoken.ErrUnavailable
		})
	}
	add("introspection", func(text string) error {
		answer, err := s.svc.Adapter().Introspect(s.ctx, text)
		return activeOrNot(answer.Active, err)
	})
	for _, at := range []struct {
		name, path string
		h          http.Handler
	}{{"introspection by remote.Handler", "/apitoken/introspect", remote.Handler(s.svc)}, {"introspection by oauthhttp", "/introspect", h}} {
		add(at.name, func(text string) error {
			r := httptest.NewRequest("POST", s.url+at.path, strings.NewReader(url.Values{"token": {text}}.Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.SetBasicAuth(s.auth.ID, s.auth.Secret.Reveal())
			w := httptest.NewRecorder()
			at.h.ServeHTTP(w, r)
			var answer struct{ Active bool }
			switch {
			case w.Code == http.StatusBadRequest: // no text that a credential could have
				return apitoken.ErrInvalidToken
			case w.Code != http.StatusOK:
				return fmt.Errorf("%d %s", w.Code, w.Body)
			}
			err := json.Unmarshal(w.Body.Bytes(), &answer)
			return activeOrNot(answer.Active, err)
		})
	}
	return x
}

func activeOrNot(active bool, err error) error {
	if err == nil && !active {
		return apitoken.ErrInvalidToken
	}
	return err
}

// elsewhere sends every request to one address.
type elsewhere struct{ to string }

func (e elsewhere) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host = e.to
	return http.DefaultTransport.RoundTrip(r)
}

// same fails unless all ways have one verdict: good, or refused; never "unavailable".
func (x *verdicts) same(t *testing.T, text string) (good bool) {
	t.Helper()
	for i, way := range x.ways {
		err := way(text)
		if errors.Is(err, apitoken.ErrNoToken) {
			err = apitoken.ErrInvalidToken // an empty text: the middleware has no word for it
		}
		if err != nil && !errors.Is(err, apitoken.ErrInvalidToken) {
			t.Fatalf("%s about %q: %v", x.names[i], text, err)
		}
		if i == 0 {
			good = err == nil
		} else if good != (err == nil) {
			t.Fatalf("%s and %s disagree about %q: %v", x.names[0], x.names[i], text, err)
		}
	}
	return good
}

// FuzzVerdicts gives arbitrary bytes, and good credentials with some bytes changed, to the service, to validators over both
// kinds of introspection, to the middleware in front of each, and to introspection itself.
func FuzzVerdicts(f *testing.F) {
	x := newVerdicts(f)
	_, key, err := x.s.svc.APIKeys.Create(x.s.ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(f, err)
	i, err := x.s.svc.Issue(x.s.ctx, apitoken.Request{Subject: "alice", Refresh: true})
	require.NoError(f, err)
	credentials := []string{key.Reveal(), i.Access.Reveal(), i.Refresh.Reveal(), x.s.auth.Secret.Reveal()}
	for _, junk := range junkKeys(f, key.Reveal(), 2) {
		f.Add([]byte(junk), uint8(0), uint16(0), uint8(0))
	}
	for _, junk := range []string{"", " ", "a.b.c", "a b", "\x00", "é", "a,b", "eyJ", "at_rt_", "at_tk_x", "at_cs_x"} {
		f.Add([]byte(junk), uint8(0), uint16(0), uint8(0))
	}
	for which := range credentials {
		f.Add([]byte(nil), uint8(which), uint16(0), uint8(0))
		for _, at := range []uint16{0, 3, 6, 9, 20, 60, 106} {
			f.Add([]byte(nil), uint8(which), at, uint8(1))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, which uint8, at uint16, bits uint8) {
		if len(text) > 0 {
			x.same(t, string(text))
			return
		}
		credential := []byte(credentials[int(which)%len(credentials)])
		credential[int(at)%len(credential)] ^= bits
		if good := x.same(t, string(credential)); good != (bits == 0 && int(which)%len(credentials) < 2) {
			t.Fatalf("credential %d with %#x in byte %d: good is %v", which, bits, at, good)
		}
		if raw, err := opaque.DecodeKey(credentials[0], "at", opaque.APIKey); err == nil && bits != 0 { // with a good checksum too
			for _, part := range [][]byte{raw.KID[:], raw.ID[:], raw.Secret[:], raw.Tag[:]} {
				part[int(at)%len(part)] ^= bits
				if x.same(t, opaque.EncodeKey("at", opaque.APIKey, raw)) {
					t.Fatalf("a changed key is accepted: %#x in byte %d", bits, at)
				}
				part[int(at)%len(part)] ^= bits
			}
		}
	})
}
