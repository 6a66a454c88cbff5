package apitoken_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func TestTargets(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, func(c *apitoken.Config) { c.Roles = map[string]apitoken.Scopes{"admin": {"users"}} })
	_, err := svc.SigningKeys.List(ctx)
	require.NoError(t, err)
	_, _, err = svc.Clients.Create(ctx, apitoken.Client{ID: "app", Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"users"}})
	require.NoError(t, err)
	req := func(subject, client string) apitoken.Request {
		return apitoken.Request{Subject: subject, Client: client, Roles: []string{"admin"}, Refresh: true}
	}
	for name, c := range map[string]struct {
		target func(i *apitoken.Issued, key apitoken.APIKey) apitoken.Target
		access bool // still good
		renew  bool
		apikey bool
		other  bool // another client's token of the same subject
	}{
		"token": {func(i *apitoken.Issued, _ apitoken.APIKey) apitoken.Target { return apitoken.ByToken(i.Token.ID()) }, false, true, true, true},
		"grant": {func(i *apitoken.Issued, _ apitoken.APIKey) apitoken.Target { return apitoken.ByGrant(i.Token.Grant()) }, false, false, true, true},
		"subject": {func(i *apitoken.Issued, _ apitoken.APIKey) apitoken.Target {
			return apitoken.BySubject(i.Token.Subject())
		}, false, false, false, false},
		"sessions": {func(i *apitoken.Issued, _ apitoken.APIKey) apitoken.Target {
			return apitoken.BySessions(i.Token.Subject())
		}, false, false, true, false},
		"held": {func(i *apitoken.Issued, _ apitoken.APIKey) apitoken.Target {
			return apitoken.BySubject(i.Token.Subject()).HeldBy("app")
		}, false, false, true, true},
		"apikey": {func(_ *apitoken.Issued, k apitoken.APIKey) apitoken.Target { return apitoken.ByToken(k.ID) }, true, true, false, true},
		"owned": {func(i *apitoken.Issued, _ apitoken.APIKey) apitoken.Target {
			return apitoken.ByGrant(i.Token.Grant()).OwnedBy(i.Token.Subject())
		}, false, false, true, true},
		"foreign principal": {func(i *apitoken.Issued, _ apitoken.APIKey) apitoken.Target {
			return apitoken.BySubject(i.Token.Subject()).OfIssuer("https://other.example.com")
		}, true, true, true, true},
		"role": {func(*apitoken.Issued, apitoken.APIKey) apitoken.Target { return apitoken.ByRole("admin") }, false, true, true, false},
	} {
		subject := "user-" + name
		i := issue(t, svc, req(subject, "app"))
		other := issue(t, svc, req(subject, ""))
		key, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: subject, Name: name})
		require.NoError(t, err)
		bystander := issue(t, svc, apitoken.Request{Subject: "bystander"})
		for _, s := range []apitoken.Secret{i.Access, other.Access, secret, bystander.Access} {
			require.NoError(t, validate(svc, s))
		}
		require.NoError(t, svc.Revoke(ctx, c.target(i, key), "test"), name)
		check := func(what string, err error, good bool) {
			t.Helper()
			if good {
				require.NoError(t, err, "%s: %s", name, what)
			} else {
				require.Error(t, err, "%s: %s", name, what)
			}
		}
		check("access", validate(svc, i.Access), c.access)
		check("another client", validate(svc, other.Access), c.other)
		check("API key", validate(svc, secret), c.apikey)
		n, err := refresh(svc, i.Refresh)
		check("refresh", err, c.renew)
		if err == nil {
			require.NoError(t, validate(svc, n.Access), name)
		}
		require.NoError(t, validate(svc, bystander.Access), name)
		again := issue(t, svc, req(subject, "app"))
		require.NoError(t, validate(svc, again.Access), "%s: what is issued afterwards is good, in the same millisecond too", name)
	}
}

func TestEverythingAndTheTimeBefore(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now = c.Now })
	early := issue(t, svc, aliceSession)
	c.Advance(10 * time.Second)
	cut := c.Now()
	c.Advance(10 * time.Second)
	late := issue(t, svc, aliceSession)
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice").IssuedBefore(cut), "breach until then"))
	require.ErrorIs(t, validate(svc, early.Access), apitoken.ErrRevoked)
	require.NoError(t, validate(svc, late.Access))
	require.NoError(t, svc.Revoke(ctx, apitoken.Everything(), "drill"))
	require.ErrorIs(t, validate(svc, late.Access), apitoken.ErrRevoked)
	require.NoError(t, validate(svc, issue(t, svc, aliceSession).Access))
}

func TestAnOldRuleNeverMasksANewerOne(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now = c.Now })
	for range 3 {
		i := issue(t, svc, aliceSession)
		require.NoError(t, validate(svc, i.Access))
		require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "once more"))
		require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
		require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice").IssuedBefore(c.Now().Add(-time.Hour)), "long ago"))
		require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
	}
}

func TestTargetsThatNameNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	i := issue(t, svc, aliceSession)
	for _, target := range []apitoken.Target{{}, apitoken.BySubject(""), apitoken.ByGrant(""), apitoken.ByToken(""), apitoken.ByClient(""), apitoken.ByRole(""), apitoken.BySigningKey(""),
		apitoken.Everything().OwnedBy(""), apitoken.ByGrant("x").OwnedBy(""), apitoken.BySubject("a").HeldBy(""), apitoken.BySubject("alice").OfIssuer(""),
		apitoken.BySubject("alice").IssuedBefore(time.Time{}), apitoken.ByGrant("x").OwnedBy("a").OwnedBy("b")} {
		require.ErrorIs(t, svc.Revoke(ctx, target, "oops"), apitoken.ErrInvalidRequest, "%q", target)
	}
	require.ErrorIs(t, svc.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()).OwnedBy("mallory"), "not yours"), apitoken.ErrNotFound)
	require.ErrorIs(t, svc.Revoke(ctx, apitoken.ByToken(i.Token.ID()).OwnedBy("mallory"), "not yours"), apitoken.ErrNotFound)
	require.ErrorIs(t, svc.Revoke(ctx, apitoken.ByGrant("nosuch").OwnedBy("alice"), "unknown"), apitoken.ErrNotFound)
	require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant("nosuch"), "unknown is no error"))
	require.NoError(t, validate(svc, i.Access))
	require.NoError(t, svc.Revoke(ctx, apitoken.Everything().OwnedBy("alice"), "all of hers"))
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
}

func TestRevocationSurvivesRestart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "tokens.db")
	var dead, live []apitoken.Secret
	for round := range 3 {
		st := openStore(t, path)
		svc, err := apitoken.New(config(st))
		require.NoError(t, err)
		for _, s := range dead {
			require.ErrorIs(t, validate(svc, s), apitoken.ErrRevoked)
		}
		for _, s := range live {
			require.NoError(t, validate(svc, s))
		}
		i := issue(t, svc, apitoken.Request{Subject: fmt.Sprint("u", round)})
		require.NoError(t, svc.Revoke(ctx, apitoken.BySubject(fmt.Sprint("u", round)), "test"))
		dead = append(dead, i.Access)
		live = append(live, issue(t, svc, apitoken.Request{Subject: fmt.Sprint("u", round)}).Access)
		require.NoError(t, svc.Close())
		require.NoError(t, st.Close())
	}
}

func TestRevocationIsInForceWhileTheStoreFails(t *testing.T) {
	t.Parallel()
	inner := tempStore(t)
	st := &faulty{Store: inner}
	svc := serviceOn(t, st, nil)
	other := serviceOn(t, inner, nil)
	i := issue(t, svc, aliceSession)
	require.NoError(t, validate(svc, i.Access))
	st.onApply(func(context.Context, *store.Change) (error, error) { return errEngine, nil })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := svc.Revoke(ctx, apitoken.BySubject("alice"), "left")
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "in force here at once")
	require.NoError(t, validate(other, i.Access), "others do not know it yet")
	st.onApply(nil)
	require.Eventually(t, func() bool { return validate(other, i.Access) != nil }, 10*time.Second, 5*time.Millisecond, "this process goes on trying until the store has it")
	require.Eventually(t, func() bool {
		next, err := svc.Issue(context.Background(), aliceSession) // retryable until this process has heard of it too
		return err == nil && validate(svc, next.Access) == nil
	}, 10*time.Second, 5*time.Millisecond, "and then a new login is good again")
	require.Len(t, events(t, other, apitoken.EventQuery{Type: event.Revoked}), 1, "one rule, one event, however often it was tried")
}

func TestAWriteThatFailedAndIsThereAllTheSame(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, nil)
	i := issue(t, svc, aliceSession)
	n := 0
	st.onApply(func(context.Context, *store.Change) (error, error) {
		if n++; n <= 2 {
			return nil, errEngine // done, and the answer lost
		}
		return nil, nil
	})
	require.NoError(t, svc.Revoke(context.Background(), apitoken.BySubject("alice"), "left"), "the retry recognises itself")
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
	require.Len(t, events(t, svc, apitoken.EventQuery{Type: event.Revoked}), 1)
}

// blind is a store whose followers see nothing new while it is shut: a process that is behind.
type blind struct {
	store.Store
	mu   sync.Mutex
	shut bool
	at   store.View
}

func (b *blind) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shut && after != (store.Position{}) {
		return store.View{Next: after, Now: b.at.Now}, nil
	}
	v, err := b.Store.Follow(ctx, after, kinds, max)
	b.at = v
	return v, err
}

func (b *blind) set(shut bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = shut
}

func TestNothingDescendsPastARuleInAProcessThatIsBehind(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	inner := tempStore(t)
	lag := &blind{Store: inner}
	behind := serviceOn(t, lag, nil)
	svc := serviceOn(t, inner, nil)
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "gateway", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}, Scopes: apitoken.Scopes{"orders"}, MayImpersonate: true})
	require.NoError(t, err)
	require.NoError(t, behind.Sync(ctx))
	old := issue(t, svc, aliceSession)
	lag.set(true)
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	// behind does not know the rule, and cannot catch up: it hands nothing out.
	n, err := refresh(behind, old.Refresh)
	require.Error(t, err, "%v", n)
	lag.set(false)
	lag.set(true) // it may have followed in between, or not
	_, err = behind.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(old.Access.Reveal()), Auth: apitoken.ClientAuth{ID: "gateway", Secret: secret}})
	require.Error(t, err)
	lag.set(false)
	require.NoError(t, behind.Sync(ctx))
	require.ErrorIs(t, validate(behind, old.Access), apitoken.ErrRevoked)
	_, err = refresh(behind, old.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.NoError(t, validate(svc, issue(t, behind, aliceSession).Access))
}

func TestRefreshAndRevokeRaceInTwoProcesses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	one, two := serviceOn(t, st, nil), serviceOn(t, st, nil)
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	for range rounds {
		i := issue(t, one, aliceSession)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var handed []apitoken.Secret
		for range 4 {
			wg.Go(func() {
				current := i.Refresh
				for {
					n, err := refresh(two, current)
					if err != nil {
						return
					}
					mu.Lock()
					handed = append(handed, n.Access)
					mu.Unlock()
					current = n.Refresh
				}
			})
		}
		require.NoError(t, one.Revoke(ctx, apitoken.BySubject("alice"), "left"))
		wg.Wait()
		require.NoError(t, two.Sync(ctx))
		for _, s := range handed {
			require.ErrorIs(t, validate(one, s), apitoken.ErrRevoked, "a token outlived the rule")
			require.ErrorIs(t, validate(two, s), apitoken.ErrRevoked)
		}
	}
}

func TestCascadeOverExchange(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "gateway", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"}, Scopes: apitoken.Scopes{"orders"}, MayImpersonate: true})
	require.NoError(t, err)
	auth := apitoken.ClientAuth{ID: "gateway", Secret: secret}
	ends := map[string]func(parent *apitoken.Issued) apitoken.Target{
		"the parent's grant": func(p *apitoken.Issued) apitoken.Target { return apitoken.ByGrant(p.Token.Grant()) },
		"the parent itself":  func(p *apitoken.Issued) apitoken.Target { return apitoken.ByToken(p.Token.ID()) },
		"the subject":        func(p *apitoken.Issued) apitoken.Target { return apitoken.BySubject("alice") },
		"the actor":          func(*apitoken.Issued) apitoken.Target { return apitoken.BySubject("gateway") },
		"the client":         func(*apitoken.Issued) apitoken.Target { return apitoken.ByClient("app") },
		"one user's client":  func(*apitoken.Issued) apitoken.Target { return apitoken.BySubject("alice").HeldBy("app") },
	}
	_, _, err = svc.Clients.Create(ctx, apitoken.Client{ID: "app", Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	v := follower(t, &poll{svc: svc}, nil)
	for name, end := range ends {
		actor := issue(t, svc, apitoken.Request{Auth: auth, Scopes: apitoken.Scopes{"orders:read"}})
		parent := issue(t, svc, apitoken.Request{Subject: "alice", Client: "app", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
		child, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(parent.Access.Reveal()), Actor: apitoken.Bearer(actor.Access.Reveal()), Auth: auth, Scopes: apitoken.Scopes{"orders:read"}})
		require.NoError(t, err)
		grandchild, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(child.Access.Reveal()), Auth: auth})
		require.NoError(t, err)
		require.Equal(t, []string{"gateway"}, grandchild.Token.Actors(), "the chain of actors is kept")
		require.NoError(t, validate(svc, grandchild.Access))
		require.NoError(t, svc.Revoke(ctx, end(parent), "test"))
		follows(t, v, svc)
		for _, x := range []apitoken.Validator{svc, v} {
			require.ErrorIs(t, validate(x, child.Access), apitoken.ErrRevoked, name)
			require.ErrorIs(t, validate(x, grandchild.Access), apitoken.ErrRevoked, name)
		}
	}
}

func TestRevokeLeaked(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	stranger := service(t, nil)
	a, b := issue(t, svc, aliceSession), issue(t, svc, apitoken.Request{Subject: "bob"})
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "carol", Name: "ci"})
	require.NoError(t, err)
	foreign := issue(t, stranger, aliceSession)
	text := strings.Join([]string{"log line", a.Refresh.Reveal(), "Authorization: Bearer " + b.Access.Reveal() + ",", `key="` + key.Reveal() + `"`,
		foreign.Refresh.Reveal(), foreign.Access.Reveal(), "at_rt_" + strings.Repeat("x", 106), "eyJ.eyJ.x", a.Refresh.Reveal()}, "\n")
	n, err := svc.RevokeLeaked(ctx, []byte(text), "found in a gist")
	require.NoError(t, err)
	require.Equal(t, 3, n, "ours, each once, and nobody else's")
	for _, s := range []apitoken.Secret{a.Access, b.Access, key} {
		require.ErrorIs(t, validate(svc, s), apitoken.ErrRevoked)
	}
	require.Len(t, events(t, svc, apitoken.EventQuery{Type: event.Leaked}), 3)
	_, err = svc.RevokeLeaked(ctx, make([]byte, 1<<20+1), "huge")
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
}

func TestTargetText(t *testing.T) {
	t.Parallel()
	for _, target := range []apitoken.Target{apitoken.BySubject("alice"), apitoken.ByGrant("01j9").OwnedBy("alice"), apitoken.BySubject("a;b=c%\n").HeldBy("web"), apitoken.Everything(),
		apitoken.BySubject("x").OfIssuer("https://a.example.com"), apitoken.BySubject("über 100 % + ;").OfIssuer("https://a.example.com").OwnedBy("über 100 % + ;").HeldBy("w"), apitoken.ByClient("c").IssuedBefore(time.Unix(1700000000, 0))} {
		text, err := target.MarshalText()
		require.NoError(t, err)
		var back apitoken.Target
		require.NoError(t, back.UnmarshalText(text))
		require.Equal(t, target.String(), back.String())
	}
	for _, bad := range []string{"nothing", "subject", "subject:", "everything:x", "subject:a;owner=", "subject:a;x=y", "subject:%zz", "grant:a;before=yesterday",
		"grant:a;owner=b;owner=c", "grant:a;owner=b;owner=b", "grant:a;client=c;owner=b", "grant:a;issuer=https://x", "subject:%61lice", "subject:a;", "subject:a;before=2024-01-02T03:04:05+01:00",
		"subject:a;before=2024-01-02T03:04:05.5Z", "subject:" + strings.Repeat("a", 256), "Subject:a", "held:a", ":a", "subject:a=b", "subject:a;owner"} {
		var back apitoken.Target
		require.Error(t, back.UnmarshalText([]byte(bad)), bad)
	}
}

// Who stole a signing key may have what he signed with it exchanged for tokens that the next key signs: they end with the key,
// also when its rule is not in the store yet.
func TestWhatWasExchangedEndsWithTheKey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	clk := &clock{}
	svc := service(t, func(c *apitoken.Config) { c.Now = clk.Now })
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "gateway", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}, Scopes: apitoken.Scopes{"orders"}, MayImpersonate: true})
	require.NoError(t, err)
	auth := apitoken.ClientAuth{ID: "gateway", Secret: secret}
	bad := activeKey(t, svc).ID
	parent := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Lifetime: time.Hour})
	require.NoError(t, svc.SigningKeys.Rotate(ctx))
	clk.Advance(20 * time.Minute)
	require.NoError(t, svc.Sync(ctx))
	require.NotEqual(t, bad, activeKey(t, svc).ID)
	child, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(parent.Access.Reveal()), Auth: auth, Lifetime: 30 * time.Minute})
	require.NoError(t, err)
	grandchild, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(child.Access.Reveal()), Auth: auth, Lifetime: 30 * time.Minute})
	require.NoError(t, err)
	other := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	v := follower(t, &poll{svc: svc}, func(c *apitoken.ValidatorConfig) { c.Now = clk.Now })
	for _, x := range []apitoken.Validator{svc, v} {
		require.NoError(t, validate(x, grandchild.Access))
	}
	require.NoError(t, svc.SigningKeys.Compromise(ctx, bad, "stolen"))
	follows(t, v, svc)
	for _, x := range []apitoken.Validator{svc, v} {
		require.ErrorIs(t, validate(x, parent.Access), apitoken.ErrInvalidToken)
		require.ErrorIs(t, validate(x, child.Access), apitoken.ErrRevoked)
		require.ErrorIs(t, validate(x, grandchild.Access), apitoken.ErrRevoked)
		require.NoError(t, validate(x, other.Access), "what the next key signed on its own stays good")
	}
	for _, e := range events(t, svc, apitoken.EventQuery{Type: event.Exchanged}) {
		require.NotContains(t, e.Extra["chain"], ":", "the log's chain is of IDs alone")
	}
}

// A revocation whose first write failed and that no store will ever take is not tried for ever. It stays in force here, as its
// caller was told, and the log says that it is in force nowhere else.
func TestARevocationThatCannotBeStored(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: memstore.New()}
	var log lockedBuffer
	svc := serviceOn(t, st, func(c *apitoken.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	i, other := issue(t, svc, aliceSession), issue(t, svc, apitoken.Request{Subject: "bob"})
	st.onApply(func(context.Context, *store.Change) (error, error) { return errEngine, nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"), apitoken.ErrUnavailable)

	st.onApply(func(_ context.Context, c *store.Change) (error, error) {
		if len(c.Puts) > 0 && c.Puts[0].Record.Kind == store.KindRule {
			return store.ErrInvalid, nil
		}
		return nil, nil
	})
	require.Eventually(t, func() bool { return svc.Backlog().Revocations == 0 }, 10*time.Second, 5*time.Millisecond)
	require.Contains(t, log.String(), "a revocation cannot be stored; it is in force until this process ends, and in no other")
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
	require.NoError(t, validate(svc, other.Access))
}
