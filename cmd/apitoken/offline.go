package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/store"
)

// A service is started on a store with the configuration that its records speak of, so that nothing in it changes by that: neither
// another signing key, nor longer lifetimes.

// facts are what a store says of its service.
type facts struct {
	Issuer    string `json:"issuer"`
	History   uint64 `json:"history"`
	MaxAccess int64  `json:"access"` // ms
	MaxGrant  int64  `json:"grant"`

	algorithm string // of the newest signing key
	keys      int
	plain     bool   // a root secret lies unencrypted
	sealed    bool   // one is sealed
	exposed   bool   // one lay unencrypted before
	moved     bool   // to another store
	prefix    string // of the newest API key; empty: there is none, and nothing else says it
	now       store.Position
}

// factsOf reads them, without a service.
func factsOf(ctx context.Context, st store.Store) (*facts, error) {
	f := &facts{algorithm: "ES256"}
	r, err := st.Get(ctx, store.KindMeta, "service")
	if errors.Is(err, store.ErrNotFound) {
		return nil, &failure{code: notFound, what: "no service has been started on this store", do: "Is it the right one, and the right --namespace?"}
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(r.Data, f); err != nil || f.Issuer == "" {
		return nil, &failure{code: failed, what: "the record of the namespace cannot be read", do: "Put a backup back."}
	}
	if _, err := st.Get(ctx, store.KindMeta, "moved"); err == nil {
		f.moved = true
	}
	var newest struct{ Activates, Took, Created int64 }
	for after := (store.Position{}); ; {
		v, err := st.Follow(ctx, after, []store.Kind{store.KindKey}, 0)
		if err != nil {
			return nil, err
		}
		for _, r := range v.Records {
			var x struct {
				Alg, JWK                                    string
				Created, Activates, Took, Ends, Compromised int64
				Plain, Sealed                               []byte
				Exposed, Spent                              bool
			}
			if json.Unmarshal(r.Data, &x) != nil {
				continue
			}
			switch {
			case strings.HasPrefix(r.ID, "root."):
				f.plain, f.sealed, f.exposed = f.plain || len(x.Plain) > 0, f.sealed || len(x.Sealed) > 0, f.exposed || x.Exposed && !x.Spent
			case strings.HasPrefix(r.ID, "sign.") && x.Compromised == 0 && x.Ends == 0 && !strings.Contains(x.JWK, `"apitoken_aud"`):
				f.keys++
				if cmp.Or(cmp.Compare(x.Activates, newest.Activates), cmp.Compare(x.Took, newest.Took), cmp.Compare(x.Created, newest.Created)) >= 0 {
					newest.Activates, newest.Took, newest.Created, f.algorithm = x.Activates, x.Took, x.Created, x.Alg
				}
			}
		}
		f.now, after = v.Next, v.Next
		if !v.More {
			break
		}
	}
	p, err := st.List(ctx, store.Query{Kind: store.KindAPIKey, Newest: true, Limit: 1})
	if err == nil && len(p.Records) == 1 {
		var x struct{ Start string }
		if json.Unmarshal(p.Records[0].Data, &x) == nil {
			if before, _, ok := strings.Cut(x.Start, "_"); ok {
				f.prefix = before
			}
		}
	}
	return f, nil
}

// restored reports that the store's history is not the one that its services accepted.
func (f *facts) restored() bool {
	return f.History != 0 && f.now.History != 0 && f.History != f.now.History
}

// start starts a service on a store. path is its file, empty for a server's.
func (a *app) start(ctx context.Context, st *opened, path string, f *facts, c *claims, choice apitoken.RestoreChoice) (_ *apitoken.Service, err error) {
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	cfg := apitoken.Config{
		Issuer: f.Issuer, Audience: cmp.Or(a.audience, f.Issuer), Store: st.Store, Prefix: cmp.Or(a.prefix, f.prefix), Algorithm: f.algorithm, KeyRotation: -1,
		Lifetimes: apitoken.Lifetimes{MaxAccess: ms(f.MaxAccess), Grant: ms(f.MaxGrant)}, InsecureKeysInStore: f.plain, Restored: choice,
	}
	if f.MaxAccess > 0 {
		cfg.Lifetimes.Access = min(5*time.Minute, ms(f.MaxAccess))
	}
	if c != nil {
		cfg.Audience = cmp.Or(a.audience, c.audience(), cfg.Audience)
		cfg.Prefix = cmp.Or(a.prefix, c.prefix, cfg.Prefix)
	}
	if f.sealed {
		if cfg.Seal, err = a.sealer(path); err != nil {
			return nil, err
		}
	}
	svc, err := apitoken.New(cfg)
	if err == nil {
		return svc, nil
	}
	x := &failure{code: failed, err: err}
	switch {
	case f.moved:
		x.do = "The service is in another store now: give that one."
	case st.restored || f.restored():
		x.code, x.do = refused, "Start the service once with Config.Restored, or run apitoken restore --accept: see docs/backup.md."
	case strings.Contains(err.Error(), "Config.Seal"):
		x.code, x.do = refused, "Give the key file that the service seals by: --seal-file."
	}
	return nil, x
}

// sealer is what opens the signing keys of a stopped service.
func (a *app) sealer(path string) (apitoken.Sealer, error) {
	file := setting(a.seal, "APITOKEN_SEAL_FILE")
	if file == "" && path != "" {
		for _, beside := range []string{strings.TrimSuffix(path, ".db") + ".key", path + ".key"} {
			if _, err := os.Stat(beside); err == nil {
				file = beside
				break
			}
		}
	}
	if file == "" {
		return nil, &failure{code: misused, what: "the store's signing keys are sealed",
			do: "Give the service's key file by --seal-file. Where a KMS seals them, start the service and use --admin."}
	}
	if _, err := os.Stat(file); err != nil {
		return nil, err
	}
	return apitoken.KeyFile(file)
}

// looksSecret reports an argument that is a token, which belongs into no argument.
func looksSecret(s string) bool {
	return strings.HasPrefix(s, "eyJ") && strings.Count(s, ".") == 2 || opaque.KindOf(s) != opaque.None
}
