package apitoken_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/httpauth"
)

func readCorpus(t testing.TB) (cases map[string]corpusCase, sets map[string]json.RawMessage) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "tokens", "*.json"))
	require.NoError(t, err)
	cases = map[string]corpusCase{}
	for _, file := range files {
		doc, err := os.ReadFile(file)
		require.NoError(t, err)
		if filepath.Base(file) == "keys.json" {
			require.NoError(t, json.Unmarshal(doc, &sets))
			continue
		}
		var c corpusCase
		require.NoError(t, json.Unmarshal(doc, &c), file)
		cases[strings.TrimSuffix(filepath.Base(file), ".json")] = c
	}
	return cases, sets
}

type fixedKeys []byte

func (k fixedKeys) JWKS(context.Context, string) ([]byte, error) { return k, nil }

func corpusValidator(t testing.TB, sets map[string]json.RawMessage, v apitoken.Validation) *apitoken.JWTValidator {
	t.Helper()
	val, err := apitoken.NewValidator(apitoken.ValidatorConfig{
		Audience: testAudience, Validation: v, Now: func() time.Time { return time.Unix(corpusNow, 0) },
		Trust: []apitoken.Trusted{
			{Issuer: testIssuer, Keys: fixedKeys(sets[testIssuer]), InsecureNoRevocations: true, Own: true},
			{Issuer: otherIssuer, Keys: fixedKeys(sets[otherIssuer]), InsecureNoRevocations: true},
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, val.Close()) })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	require.NoError(t, val.Ready(ctx))
	return val
}

type countObserver struct{ refused, all atomic.Int64 }

func (c *countObserver) Observe(_ context.Context, o apitoken.Observation) {
	if o.Op != "validate" {
		return
	}
	c.all.Add(1)
	if o.Err != nil {
		c.refused.Add(1)
	}
}

func TestCorpus(t *testing.T) {
	t.Parallel()
	cases, sets := readCorpus(t)
	require.GreaterOrEqual(t, len(cases), 120)
	// Nobody may be asked for a key that a token names.
	var connections atomic.Int64
	if l, err := net.Listen("tcp", "127.0.0.1:47113"); err == nil {
		srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { connections.Add(1) }), ReadHeaderTimeout: time.Second}
		go srv.Serve(l)
		defer srv.Close()
	}
	for _, with := range []struct {
		name string
		v    apitoken.Validation
	}{{"cached", apitoken.Validation{Skew: -1}}, {"uncached", apitoken.Validation{Skew: -1, Cache: apitoken.NewCache(0)}}} {
		t.Run(with.name, func(t *testing.T) {
			v := corpusValidator(t, sets, with.v)
			var seen countObserver
			defer v.Observe(&seen)()
			handler := httpauth.New(v, nil).Authenticated(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
			ctx := context.Background()
			for name, c := range cases { // the good twins first: what is known of them must not help the bad ones
				if c.Want == "good" {
					for range 2 {
						tok, err := v.Validate(ctx, apitoken.Bearer(c.Token))
						require.NoError(t, err, "%s: %s", name, c.About)
						require.Equal(t, "alice", tok.Subject())
						if strings.HasPrefix(name, "foreign-") { // a principal is issuer and subject together
							require.Equal(t, otherIssuer, tok.Issuer())
							require.Empty(t, tok.Client()+tok.Grant(), name)
							require.Empty(t, tok.Scopes(), name)
							require.Empty(t, tok.Roles(), name)
						}
					}
				}
			}
			for name, c := range cases {
				want := map[string]error{"good": nil, "invalid": apitoken.ErrInvalidToken, "expired": apitoken.ErrExpired}
				code, ok := want[c.Want]
				require.True(t, ok, name)
				for sight := range 2 {
					before := seen.refused.Load()
					tok, err := v.Validate(ctx, apitoken.Bearer(c.Token))
					if code == nil {
						require.NoError(t, err, name)
						continue
					}
					require.ErrorIs(t, err, code, "%s, sight %d: %s", name, sight+1, c.About)
					require.True(t, tok.IsZero())
					require.Equal(t, c.Want == "expired", errors.Is(err, apitoken.ErrExpired), name)
					require.EqualValues(t, 1, seen.refused.Load()-before, "%s is counted once", name)
					require.NotContains(t, err.Error(), "alice", "%s: the error is fit for a client", name)
				}
				if strings.HasPrefix(c.Token, " ") {
					continue // in a header that is a second space behind the scheme, which RFC 6750 §2.1 allows
				}
				// The middleware agrees. What is no token68 is no well-formed request.
				r := httptest.NewRequest("GET", "/", nil)
				r.Header["Authorization"] = []string{"Bearer " + c.Token}
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, r)
				if code == nil {
					require.Equal(t, 200, w.Code, name)
				} else {
					require.Contains(t, []int{401, 400}, w.Code, name)
					require.Contains(t, w.Header().Get("WWW-Authenticate"), "error=", name)
				}
			}
		})
	}
	require.Zero(t, connections.Load(), "no outbound connection")
}

func TestCorpusIsBoundedInMemory(t *testing.T) {
	cases, sets := readCorpus(t)
	v := corpusValidator(t, sets, apitoken.Validation{Skew: -1, Cache: apitoken.NewCache(0)})
	ctx := context.Background()
	for name, c := range cases {
		var before, after runtime.MemStats
		_, _ = v.Validate(ctx, apitoken.Bearer(c.Token))
		runtime.ReadMemStats(&before)
		for range 10 {
			_, _ = v.Validate(ctx, apitoken.Bearer(c.Token))
		}
		runtime.ReadMemStats(&after)
		require.Less(t, (after.TotalAlloc-before.TotalAlloc)/10, uint64(64<<10), "%s", name)
	}
}

// The corpus against a service that trusts its issuers: the same verdicts, each refusal counted once, by Validate and by
// the middleware, with and without what is kept of good tokens.
func TestCorpusThroughAService(t *testing.T) {
	t.Parallel()
	cases, sets := readCorpus(t)
	svc := service(t, func(c *apitoken.Config) {
		c.Issuer, c.Now = "https://third.example.com", func() time.Time { return time.Unix(corpusNow, 0) }
		c.Validation.Skew = -1
		c.Trust = []apitoken.Trusted{
			{Issuer: testIssuer, Keys: fixedKeys(sets[testIssuer]), InsecureNoRevocations: true, Own: true},
			{Issuer: otherIssuer, Keys: fixedKeys(sets[otherIssuer]), InsecureNoRevocations: true},
		}
	})
	require.Eventually(t, func() bool {
		return validate(svc, apitoken.NewSecret(cases["good-es256"].Token)) == nil && validate(svc, apitoken.NewSecret(cases["foreign-good"].Token)) == nil
	}, 30*time.Second, time.Millisecond, "the keys are read in the background")
	apitoken.FlushUses(svc)
	refused := func() (n int) {
		apitoken.FlushUses(svc)
		for _, e := range events(t, svc, apitoken.EventQuery{Type: event.Refused}) {
			n += e.Count
		}
		return n
	}
	before, bad := refused(), 0
	handler := httpauth.New(svc, nil).Authenticated(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for name, c := range cases {
		want := map[string]error{"good": nil, "invalid": apitoken.ErrInvalidToken, "expired": apitoken.ErrExpired}[c.Want]
		for range 2 {
			err := validate(svc, apitoken.NewSecret(c.Token))
			require.ErrorIs(t, err, want, "%s: %s", name, c.About)
			require.NoError(t, validate(svc, apitoken.NewSecret(cases["good-es256"].Token)), "%s: a bad token harms no good one", name)
		}
		if want == nil {
			continue
		}
		bad += 2
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Authorization"] = []string{"Bearer " + c.Token}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code == 200 {
			require.Equal(t, "structure-space-before", name) // a second space behind the scheme, which RFC 6750 §2.1 allows
		} else if !strings.ContainsAny(c.Token, " ,\t") { // a header that is not even one credential is shown to no validator
			bad++
		}
	}
	require.Equal(t, bad, refused()-before, "each refusal is counted once")
	for _, e := range events(t, svc, apitoken.EventQuery{Type: event.Refused}) {
		if e.Subject != "" || e.TokenID != "" {
			require.Contains(t, []string{"alice"}, e.Subject, "a claim of a token that did not verify is no fact")
		}
	}
	require.Empty(t, events(t, svc, apitoken.EventQuery{Subject: "root"}))
}

// Tokens are kept by a hash of their ends. Whatever else ends like a good token is another token.
func TestOneEndIsNotOneToken(t *testing.T) {
	t.Parallel()
	cases, sets := readCorpus(t)
	v := corpusValidator(t, sets, apitoken.Validation{})
	for name, c := range cases {
		if c.Want != "good" {
			continue
		}
		require.NoError(t, validate(v, apitoken.NewSecret(c.Token)), name)
		head, rest, _ := strings.Cut(c.Token, ".")
		body, sig, _ := strings.Cut(rest, ".")
		for what, twin := range map[string]string{
			"another header":        cases["good-typ-case"].Token[:strings.IndexByte(cases["good-typ-case"].Token, '.')] + "x." + rest,
			"another payload":       head + "." + b64([]byte(claimsWith("sub", `"root"`))) + "." + sig,
			"a payload cut":         head + "." + body[4:] + "." + sig,
			"nothing but the end":   c.Token[len(c.Token)-64:],
			"the end twice":         c.Token + c.Token[len(c.Token)-64:],
			"one character flipped": flip(c.Token, len(head)+5),
		} {
			for sight := range 2 {
				require.ErrorIs(t, validate(v, apitoken.NewSecret(twin)), apitoken.ErrInvalidToken, "%s: %s, sight %d", name, what, sight+1)
			}
			require.NoError(t, validate(v, apitoken.NewSecret(c.Token)), "%s, after %s", name, what)
		}
	}
}

func TestTheRootReachesNoNetwork(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "github.com/apitoken-go/apitoken").CombinedOutput()
	require.NoError(t, err, string(out))
	for _, pkg := range strings.Fields(string(out)) {
		require.NotEqual(t, "net/http", pkg, "whoever validates a token cannot fetch what it names")
	}
}
