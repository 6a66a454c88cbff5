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
	}{{"cached", apitoken.Validation{}}, {"uncached", apitoken.Validation{CacheBytes: -1}}} {
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
	v := corpusValidator(t, sets, apitoken.Validation{CacheBytes: -1})
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

func TestCorpusThroughAService(t *testing.T) {
	t.Parallel()
	cases, _ := readCorpus(t)
	svc := service(t, nil)
	n := 0
	for name, c := range cases {
		err := validate(svc, apitoken.NewSecret(c.Token))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken, "%s: another service's keys", name)
		n++
	}
	count := 0
	for _, e := range events(t, svc, apitoken.EventQuery{Type: apitoken.EventRefused}) {
		count += e.Count
		require.Empty(t, e.Subject, "a claim of a token that did not verify is no fact")
		require.Empty(t, e.TokenID)
	}
	require.Equal(t, n, count, "each refusal is counted once")
}

func TestTheRootReachesNoNetwork(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "github.com/apitoken-go/apitoken").CombinedOutput()
	require.NoError(t, err, string(out))
	for _, pkg := range strings.Fields(string(out)) {
		require.NotEqual(t, "net/http", pkg, "whoever validates a token can not fetch what it names")
	}
}
