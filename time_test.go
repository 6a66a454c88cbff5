package apitoken_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/export"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

func TestClocksThatJump(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, jump := range []time.Duration{time.Hour, 365 * 24 * time.Hour, -time.Hour, -365 * 24 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			t.Parallel()
			c := &clock{}
			svc := service(t, func(cfg *apitoken.Config) { cfg.Now = c.Now })
			dead, live := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour, Refresh: true}), issue(t, svc, apitoken.Request{Subject: "bob", Lifetime: time.Hour})
			require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
			c.Advance(jump)
			require.NoError(t, svc.Sync(ctx))
			require.Error(t, validate(svc, dead.Access), "no jump brings a revoked token back")
			_, err := refresh(svc, dead.Refresh)
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
			fresh := issue(t, svc, apitoken.Request{Subject: "alice"})
			require.NoError(t, validate(svc, fresh.Access), "what is issued after a revocation is good, wherever the clock stands")
			require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "again"))
			require.ErrorIs(t, validate(svc, fresh.Access), apitoken.ErrRevoked, "and can be revoked")
			c.Advance(-jump)
			require.NoError(t, svc.Sync(ctx))
			require.Error(t, validate(svc, dead.Access))
			require.Error(t, validate(svc, fresh.Access))
			require.NoError(t, validate(svc, live.Access), "expiry is judged by the real clock")
			_, err = refresh(svc, dead.Refresh)
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
		})
	}
}

func TestAClockThatIsStoppedServesNothingOld(t *testing.T) {
	t.Parallel()
	// The wall clock passes while the process is stopped: its view is as old as the stop was long.
	c := &clock{}
	lag := &blind{Store: tempStore(t)}
	svc := serviceOn(t, lag, func(cfg *apitoken.Config) { cfg.Now = c.Now })
	i := issue(t, svc, aliceSession)
	require.NoError(t, validate(svc, i.Access))
	c.Advance(11 * time.Second)
	err := validate(svc, i.Access)
	if err != nil { // unless the follower was faster
		require.ErrorIs(t, err, apitoken.ErrUnavailable)
	}
	require.Eventually(t, func() bool { return validate(svc, i.Access) == nil }, 10*time.Second, time.Millisecond, "it catches up by itself")
}

func TestARestoredBackup(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	path := filepath.Join(dir, "tokens.db")
	st, err := boltstore.Open(path, nil)
	require.NoError(t, err)
	svc, err := apitoken.New(config(st))
	require.NoError(t, err)
	alice, bob := issue(t, svc, aliceSession), issue(t, svc, apitoken.Request{Subject: "bob", Refresh: true})
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "carol"})
	require.NoError(t, err)
	var backup bytes.Buffer
	require.NoError(t, st.Backup(ctx, &backup))
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "after the backup"))
	require.NoError(t, svc.Close())
	require.NoError(t, st.Close())

	restore := func() *boltstore.Store {
		other := filepath.Join(t.TempDir(), "tokens.db")
		require.NoError(t, os.WriteFile(other, backup.Bytes(), 0o600))
		return openStore(t, other)
	}
	restored := restore()
	_, err = apitoken.New(config(restored))
	var wrong *apitoken.ConfigError
	require.ErrorAs(t, err, &wrong, "a restored backup opens only with an explicit choice")
	require.Equal(t, "Restored", wrong.Field)

	c := config(restored)
	c.Restored = apitoken.RevokeOnRestore
	svc, err = apitoken.New(c)
	require.NoError(t, err)
	for _, s := range []apitoken.Secret{alice.Access, bob.Access, key} {
		require.ErrorIs(t, validate(svc, s), apitoken.ErrRevoked)
	}
	_, err = refresh(svc, bob.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.NoError(t, validate(svc, issue(t, svc, aliceSession).Access))
	require.NoError(t, svc.Close())
	svc, err = apitoken.New(config(restored))
	require.NoError(t, err, "the choice is made once")
	require.NoError(t, svc.Close())

	c = config(restore())
	c.Restored = apitoken.ReplayedRestored
	svc, err = apitoken.New(c)
	require.NoError(t, err)
	defer svc.Close()
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "replayed"))
	require.ErrorIs(t, validate(svc, alice.Access), apitoken.ErrRevoked)
	require.NoError(t, validate(svc, bob.Access))
}

func TestPurgeForgetsNoLivingRevocation(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	svc := serviceOn(t, st, func(c *apitoken.Config) { c.Lifetimes.MaxAccess = time.Hour })
	i := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour, Refresh: true})
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
	require.NoError(t, err)
	require.NoError(t, svc.Revoke(ctx, apitoken.ByToken(i.Token.ID()), "x"))
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "x"))
	// Whoever purges by a clock that is a year ahead gets nothing that the store's own clock calls alive.
	for _, kind := range []store.Kind{store.KindRule, "grant", store.KindAPIKey} {
		_, err := st.Purge(ctx, kind, time.Now().AddDate(1, 0, 0).UnixMilli(), 1000)
		require.NoError(t, err)
	}
	require.NoError(t, svc.Close())
	again := serviceOn(t, st, nil)
	require.ErrorIs(t, validate(again, i.Access), apitoken.ErrRevoked)
	require.ErrorIs(t, validate(again, key), apitoken.ErrRevoked)
	_, err = refresh(again, i.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
}

// TestNoSecretLiesAnywhere runs a whole life with known secrets and then looks for them: in the file, the events, the
// logs, and in what %+v and JSON make of everything that was returned.
func TestNoSecretLiesAnywhere(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	path := filepath.Join(dir, "tokens.db")
	st, err := boltstore.Open(path, nil)
	require.NoError(t, err)
	seal, err := apitoken.KeyFile(filepath.Join(dir, "tokens.key"))
	require.NoError(t, err)
	var logs bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := config(st)
	c.Seal, c.InsecureKeysInStore, c.Logger = seal, false, logger
	c.Sinks = []apitoken.Sink{{Name: "log", Auditor: export.NewSlogAuditor(logger)}}
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	var secrets []apitoken.Secret
	var shown []any
	keep := func(s ...apitoken.Secret) { secrets = append(secrets, s...) }
	i := issue(t, svc, aliceSession)
	keep(i.Access, i.Refresh)
	n, err := refresh(svc, i.Refresh)
	require.NoError(t, err)
	keep(n.Access, n.Refresh)
	_, err = refresh(svc, apitoken.NewSecret(flip(n.Refresh.Reveal(), 40)))
	shown = append(shown, i, n, err)
	client, cs, err := svc.Clients.Create(ctx, apitoken.Client{ID: "web", GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	chosen := apitoken.NewSecret("a secret that the host chose")
	require.NoError(t, svc.Clients.Declare(ctx, apitoken.Client{ID: "batch"}, chosen))
	keep(cs, chosen)
	_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "batch", Secret: chosen})
	require.NoError(t, err)
	auth := apitoken.ClientAuth{ID: "web", Secret: cs}
	x, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "ci"})
	require.NoError(t, err)
	keep(key)
	code, err := svc.Prepare(ctx, apitoken.Request{Subject: "carol", Refresh: true}, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	keep(code)
	redeemed, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.NoError(t, err)
	keep(redeemed.Access, redeemed.Refresh)
	_, reused := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	shown = append(shown, apitoken.Redemption{Ticket: code.Reveal()}, apitoken.RefreshRequest{Token: n.Refresh.Reveal()}, redeemed)
	second, err := svc.Clients.RotateSecret(ctx, "web", time.Hour)
	require.NoError(t, err)
	registration, err := svc.Clients.RegistrationToken(ctx, "web")
	require.NoError(t, err)
	_, rotated, err := svc.APIKeys.Rotate(ctx, x.ID, time.Hour)
	require.NoError(t, err)
	hashed := apitoken.NewSecret("a secret of a configuration file")
	text1, err := apitoken.HashSecret(hashed)
	require.NoError(t, err)
	require.NoError(t, svc.Clients.Declare(ctx, apitoken.Client{ID: "gw", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}, MayImpersonate: true}, apitoken.NewSecret(text1)))
	exchanged, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(rotated.Reveal()), Auth: apitoken.ClientAuth{ID: "gw", Secret: hashed}})
	require.NoError(t, err)
	keep(second, registration, rotated, hashed, exchanged.Access)
	for _, s := range secrets {
		_, err := svc.Validate(ctx, apitoken.Bearer(s.Reveal()))
		shown = append(shown, err, svc.Explain(ctx, apitoken.Bearer(s.Reveal()), apitoken.Authenticated()))
	}
	_, err = svc.RevokeLeaked(ctx, leakText(key, second, registration), "found")
	require.NoError(t, err)
	shown = append(shown, client, auth, x, reused, redeemed, apitoken.Bearer(key.Reveal()), c.Seal)
	list := events(t, svc, apitoken.EventQuery{})
	require.NotEmpty(t, list)
	for _, e := range list {
		shown = append(shown, e)
	}
	logger.Info("all of it", "shown", shown, "response", i.Token)
	require.NoError(t, svc.Close())
	require.NoError(t, st.Close())

	keyFile, err := os.ReadFile(filepath.Join(dir, "tokens.key"))
	require.NoError(t, err)
	_, kek, _ := strings.Cut(strings.TrimSpace(string(keyFile)), " ")
	rawKEK, err := base64.StdEncoding.DecodeString(kek)
	require.NoError(t, err)
	db, err := os.ReadFile(path)
	require.NoError(t, err)
	var text strings.Builder
	for _, v := range shown {
		fmt.Fprintf(&text, "%v %+v\n", v, v)
		if doc, err := json.Marshal(v); err == nil {
			text.Write(doc)
		}
	}
	places := map[string][]byte{"the database": db, "the logs": logs.Bytes(), "what was printed": []byte(text.String())}
	look := func(what string, secret []byte) {
		t.Helper()
		forms := map[string][]byte{"raw": secret, "hex": []byte(hex.EncodeToString(secret)), "base64": []byte(base64.StdEncoding.EncodeToString(secret)), "base64url": []byte(base64.RawURLEncoding.EncodeToString(secret))}
		for place, content := range places {
			for form, needle := range forms {
				require.False(t, bytes.Contains(content, needle), "%s lies %s in %s", what, form, place)
			}
		}
	}
	look("the key-encryption key", rawKEK)
	for n, s := range secrets {
		text := s.Reveal()
		look(fmt.Sprintf("secret %d", n), []byte(text))
		// Not its secret part alone either: the second half of an opaque token, the signature of a JWT.
		if i := strings.LastIndexByte(text, '.'); i > 0 {
			look(fmt.Sprintf("signature %d", n), []byte(text[i+1:]))
		} else if len(text) > 100 {
			look(fmt.Sprintf("secret part %d", n), []byte(text[len(text)-60:len(text)-20]))
		}
	}
}

// swapped is a store whose engine fails over to another under the service.
type swapped struct {
	atomic.Pointer[boltstore.Store]
}

func (s *swapped) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	return s.Load().Get(ctx, k, id)
}
func (s *swapped) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	return s.Load().Apply(ctx, c)
}
func (s *swapped) Follow(ctx context.Context, p store.Position, kinds []store.Kind, max int) (store.View, error) {
	return s.Load().Follow(ctx, p, kinds, max)
}
func (s *swapped) List(ctx context.Context, q store.Query) (store.Page, error) {
	return s.Load().List(ctx, q)
}
func (s *swapped) Purge(ctx context.Context, k store.Kind, before int64, max int) (int, error) {
	return s.Load().Purge(ctx, k, before, max)
}

// A running service whose engine loses its latest writes goes on to enforce what it knows, and writes it back at once, so
// that processes which start later know it too.
func TestLostRevocationIsPutBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &swapped{}
	first := tempStore(t)
	st.Store(first)
	svc := serviceOn(t, st, nil)
	i := issue(t, svc, aliceSession)
	path := filepath.Join(t.TempDir(), "replica.db")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	require.NoError(t, err)
	err = first.Backup(ctx, f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()), "stolen"))

	replica := openStore(t, path)
	st.Store(replica)
	require.NoError(t, svc.Sync(ctx))
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
	require.Eventually(t, func() bool {
		p, err := replica.List(ctx, store.Query{Kind: store.KindRule})
		return err == nil && len(p.Records) == 1
	}, 20*time.Second, 5*time.Millisecond, "the rule is not written back")
	other := serviceOn(t, replica, func(c *apitoken.Config) { c.Restored = apitoken.ReplayedRestored })
	require.ErrorIs(t, validate(other, i.Access), apitoken.ErrRevoked)
}
