package apitoken_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/store"
)

// poll is the feed of a service as a validator without a store follows it: a long poll, over which a test can change what
// is said.
type poll struct {
	svc *apitoken.Service
	mu  sync.Mutex
	say func(after store.Position, v *feed.View) error
}

func (w *poll) Waits() bool { return true }

func (w *poll) set(say func(after store.Position, v *feed.View) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say = say
}

func (w *poll) Revocations(ctx context.Context, after store.Position, max int) (feed.View, error) {
	if after != (store.Position{}) {
		poll, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		_ = w.svc.Adapter().Wait(poll, after)
		cancel()
	}
	v, err := w.svc.Revocations(ctx, after, max)
	w.mu.Lock()
	say := w.say
	w.mu.Unlock()
	if err == nil && say != nil {
		err = say(after, &v)
	}
	return v, err
}

// follower is a validator without a store that trusts svc.
func follower(t testing.TB, w *poll, change func(*apitoken.ValidatorConfig)) *apitoken.JWTValidator {
	t.Helper()
	c := apitoken.ValidatorConfig{Audience: testAudience, Trust: []apitoken.Trusted{{Issuer: testIssuer, Keys: w.svc.SigningKeys, Revocations: w, Own: true}},
		Validation: apitoken.Validation{MaxStaleness: time.Minute}} // a busy machine is not what these tests are about
	if change != nil {
		change(&c)
	}
	v, err := apitoken.NewValidator(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.Close()) })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	require.NoError(t, v.Ready(ctx))
	return v
}

// follows waits until v has seen all that svc has.
func follows(t testing.TB, v *apitoken.JWTValidator, svc *apitoken.Service) {
	t.Helper()
	require.NoError(t, svc.Sync(context.Background()))
	want := svc.Freshness().Position
	require.Eventually(t, func() bool {
		f := v.Freshness().Position
		return f.History == want.History && f.N >= want.N && !v.Freshness().Stale
	}, 30*time.Second, time.Millisecond, "the follower never came to %v", want)
}

// What a validator knows when the key of the feed changes goes on to count, and nothing that it has verified before the
// change passes for checked against what came with it.
func TestFeedKeyThatRotatesHidesNoRule(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now, cfg.KeyRotation = c.Now, 20*time.Minute })
	w := &poll{svc: svc}
	v := follower(t, w, func(cfg *apitoken.ValidatorConfig) { cfg.Now = c.Now })
	// A new secret is used when every process has had time to hear of it.
	rotate := func() {
		require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
		c.Advance(11 * time.Minute)
		require.NoError(t, svc.Sync(ctx))
	}
	alice, bob := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour}), issue(t, svc, apitoken.Request{Subject: "bob", Lifetime: time.Hour})
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("carol"), "one rule, so that versions are counted"))
	follows(t, v, svc)
	require.NoError(t, validate(v, alice.Access))
	// The answer under the new key brings the next rule with all older ones, at once.
	w.set(func(store.Position, *feed.View) error { return errors.New("cut off") })
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	rotate()
	w.set(nil)
	follows(t, v, svc)
	require.Equal(t, 2, apitoken.FeedBooks(v, testIssuer), "the key is another one")
	require.ErrorIs(t, validate(v, alice.Access), apitoken.ErrRevoked, "a kept verdict passed for one that was checked under the new key")
	require.NoError(t, validate(v, bob.Access))
	rotate()
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("bob"), "left"))
	follows(t, v, svc)
	require.ErrorIs(t, validate(v, alice.Access), apitoken.ErrRevoked)
	require.ErrorIs(t, validate(v, bob.Access), apitoken.ErrRevoked)
}

// A balancer may stand before issuers of which one uses the new secrets already and the other does not yet: the key of the
// feed goes back and forth.
func TestFeedWhoseKeyGoesBackAndForth(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st, ahead := tempStore(t), &clock{}
	lead := func(c *apitoken.Config) { c.KeyRotation = 20 * time.Minute }
	late := serviceOn(t, st, lead)
	early := serviceOn(t, st, func(c *apitoken.Config) { lead(c); c.Now = ahead.Now })
	alice, bob := issue(t, late, aliceSession), issue(t, late, apitoken.Request{Subject: "bob"})
	require.NoError(t, late.SigningKeys.RotateSecrets(ctx))
	ahead.Advance(11 * time.Minute) // by its clock everybody has had time to hear of it
	require.NoError(t, early.Sync(ctx))
	require.Eventually(t, func() bool {
		a, err := early.Revocations(ctx, store.Position{}, 0)
		b, err2 := late.Revocations(ctx, store.Position{}, 0)
		return err == nil && err2 == nil && !bytes.Equal(a.Key, b.Key)
	}, 30*time.Second, time.Millisecond, "the new secrets are opened in the background")
	w := &poll{svc: late}
	v := follower(t, w, nil)
	var answers atomic.Int64
	w.set(func(after store.Position, a *feed.View) (err error) {
		if answers.Add(1)/4%2 == 0 { // a few requests in turn go to one of them
			*a, err = early.Revocations(ctx, after, 0)
		}
		return err
	})
	turns := func() {
		t.Helper()
		n := answers.Load()
		require.Eventually(t, func() bool { return answers.Load() > n+10 }, 30*time.Second, time.Millisecond)
	}
	turns()
	require.NoError(t, late.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	require.NoError(t, early.Sync(ctx))
	follows(t, v, late)
	require.ErrorIs(t, validate(v, alice.Access), apitoken.ErrRevoked)
	require.NoError(t, validate(v, bob.Access))
	at := v.Freshness().Position
	for range 5 {
		turns()
		require.ErrorIs(t, validate(v, alice.Access), apitoken.ErrRevoked)
		require.GreaterOrEqual(t, v.Freshness().Position.N, at.N, "the view went back")
	}
	require.NoError(t, early.Revoke(ctx, apitoken.BySubject("bob"), "left"))
	require.NoError(t, late.Sync(ctx))
	follows(t, v, late)
	require.ErrorIs(t, validate(v, bob.Access), apitoken.ErrRevoked)
	require.Equal(t, 2, apitoken.FeedBooks(v, testIssuer), "a set of rules for each key, not for each change of it")
}

// Behind a balancer an issuer that lags may be the one that is read from the start: what it brings counts, and what it
// does not know yet is not taken for fresh.
func TestFeedThatIsReadAgainFromOneThatLags(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	w := &poll{svc: svc}
	v := follower(t, w, func(c *apitoken.ValidatorConfig) { c.Validation.MaxStaleness = time.Hour })
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("carol"), "something to lag behind"))
	old, err := svc.Revocations(ctx, store.Position{}, 0)
	require.NoError(t, err)
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	follows(t, v, svc)
	at := v.Freshness()
	var fromStart atomic.Int64
	w.set(func(after store.Position, a *feed.View) error {
		if after != (store.Position{}) {
			return store.ErrDiverged // asks for all of it
		}
		fromStart.Add(1)
		*a = old
		return nil
	})
	require.Eventually(t, func() bool { return fromStart.Load() > 3 }, 30*time.Second, time.Millisecond)
	now := v.Freshness()
	require.Equal(t, at.Position, now.Position, "the view went back")
	require.Greater(t, now.Age, at.Age, "an answer that goes back makes the view younger")
}

// An answer of another history, under which no rule may be lost, also when its source does not say so by ErrDiverged.
func TestFeedOfAnotherHistoryIsReadFromItsStart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	w := &poll{svc: svc}
	v := follower(t, w, nil)
	i := issue(t, svc, aliceSession)
	require.NoError(t, validate(v, i.Access))
	w.set(func(after store.Position, a *feed.View) error {
		a.Next.History++ // as a source would that was restored
		if after != (store.Position{}) {
			a.Rules = nil // what is behind its own position, which says nothing of ours
		}
		return nil
	})
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	require.Eventually(t, func() bool { return errors.Is(validate(v, i.Access), apitoken.ErrRevoked) }, 30*time.Second, time.Millisecond)
}

// A service of someone else, whose revocations we follow, ends its tokens by whatever it names them: their sessions,
// clients and roles are its own business, not ours, and count all the same.
func TestForeignIssuersRules(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	theirs := service(t, func(c *apitoken.Config) {
		c.Issuer, c.Audiences = otherIssuer, []string{testAudience}
		c.Roles = map[string]apitoken.Scopes{"admin": {"orders"}}
	})
	_, _, err := theirs.Clients.Create(ctx, apitoken.Client{ID: "app", Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}, Audiences: []string{testAudience}})
	require.NoError(t, err)
	_, secret, err := theirs.Clients.Create(ctx, apitoken.Client{ID: "gateway", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}, Scopes: apitoken.Scopes{"orders"}, Audiences: []string{testAudience}, MayImpersonate: true})
	require.NoError(t, err)
	w := &poll{svc: theirs}
	v := follower(t, w, func(c *apitoken.ValidatorConfig) {
		c.Validation.Skew = -1 // or a rule refuses what was issued up to that much later
		c.Trust = []apitoken.Trusted{{Issuer: otherIssuer, Keys: theirs.SigningKeys, Revocations: w, Scopes: apitoken.Scopes{"orders"}}}
	})
	ours := service(t, func(c *apitoken.Config) {
		c.Validation.Skew = -1
		c.Trust = []apitoken.Trusted{{Issuer: otherIssuer, Keys: theirs.SigningKeys, Revocations: w, Scopes: apitoken.Scopes{"orders"}}}
	})
	opened := func(subject string) *apitoken.Issued {
		return issue(t, theirs, apitoken.Request{Subject: subject, Client: "app", Roles: []string{"admin"}, Audiences: []string{testAudience}, Refresh: true})
	}
	for name, target := range map[string]func(i *apitoken.Issued) apitoken.Target{
		"token":    func(i *apitoken.Issued) apitoken.Target { return apitoken.ByToken(i.Token.ID()) },
		"grant":    func(i *apitoken.Issued) apitoken.Target { return apitoken.ByGrant(i.Token.Grant()) },
		"subject":  func(i *apitoken.Issued) apitoken.Target { return apitoken.BySubject(i.Token.Subject()) },
		"sessions": func(i *apitoken.Issued) apitoken.Target { return apitoken.BySessions(i.Token.Subject()) },
		"client":   func(*apitoken.Issued) apitoken.Target { return apitoken.ByClient("app") },
		"held":     func(i *apitoken.Issued) apitoken.Target { return apitoken.BySubject(i.Token.Subject()).HeldBy("app") },
		"role":     func(*apitoken.Issued) apitoken.Target { return apitoken.ByRole("admin") },
		"before": func(i *apitoken.Issued) apitoken.Target {
			return apitoken.BySubject(i.Token.Subject()).IssuedBefore(time.Now())
		},
		"all": func(*apitoken.Issued) apitoken.Target { return apitoken.Everything() },
	} {
		i := opened("user-" + name)
		var child *apitoken.Issued
		if name == "grant" {
			child, err = theirs.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(i.Access.Reveal()), Auth: apitoken.ClientAuth{ID: "gateway", Secret: secret}})
			require.NoError(t, err)
		}
		for _, x := range []apitoken.Validator{v, ours} {
			require.Eventually(t, func() bool {
				tok, err := x.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
				return err == nil && tok.Client() == "" && tok.Grant() == "" && len(tok.Roles()) == 0 && tok.Allows("orders:read")
			}, 30*time.Second, 50*time.Millisecond, "%s: good, and with none of our names (a rule of the same second refuses it: wait that out)", name)
		}
		require.NoError(t, theirs.Revoke(ctx, target(i), "test"))
		for _, x := range []apitoken.Validator{v, ours} {
			require.Eventually(t, func() bool { return errors.Is(validate(x, i.Access), apitoken.ErrRevoked) }, 30*time.Second, time.Millisecond, name)
			if child != nil {
				require.ErrorIs(t, validate(x, child.Access), apitoken.ErrRevoked, "what was exchanged from it ends with it")
			}
		}
		next := opened("user-" + name)
		require.Eventually(t, func() bool {
			next = opened("user-" + name) // by seconds: what is issued in the same one as the rule is refused
			return validate(v, next.Access) == nil && validate(ours, next.Access) == nil
		}, 30*time.Second, 100*time.Millisecond, "%s: what is issued afterwards is good", name)
		require.NoError(t, ours.Revoke(ctx, apitoken.ByToken(next.Token.ID()).OfIssuer(otherIssuer), "by our own rule"))
		require.ErrorIs(t, validate(ours, next.Access), apitoken.ErrRevoked)
		require.NoError(t, validate(v, next.Access), "which is ours alone")
	}
}

// A rule on a principal of another issuer stays until that issuer's longest token has died, however short our own live.
func TestRulesOutliveForeignTokens(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	trust := func(c *apitoken.Config) {
		c.Lifetimes = apitoken.Lifetimes{Access: time.Minute, MaxAccess: time.Minute, Grant: time.Hour}
		c.Trust = []apitoken.Trusted{{Issuer: otherIssuer, Keys: fixedKeys(`{"keys":[]}`), InsecureNoRevocations: true, MaxLifetime: 40 * time.Hour}}
	}
	svc := serviceOn(t, st, trust)
	targets := []apitoken.Target{apitoken.ByToken("x").OfIssuer(otherIssuer), apitoken.BySubject("alice").OfIssuer(otherIssuer), apitoken.BySessions("alice").OfIssuer(otherIssuer), apitoken.Everything()}
	for _, target := range targets {
		require.NoError(t, svc.Revoke(ctx, target, "test"))
	}
	require.NoError(t, svc.Revoke(ctx, apitoken.ByToken("ours"), "test"))
	require.NoError(t, svc.Close())
	check := func() {
		t.Helper()
		page, err := st.List(ctx, store.Query{Kind: store.KindRule, Limit: 100})
		require.NoError(t, err)
		require.Len(t, page.Records, len(targets)+1)
		for _, r := range page.Records {
			if r.Token == "ours" {
				require.Less(t, r.Expires, time.Now().Add(3*time.Hour).UnixMilli(), "and not longer than it must")
				continue
			}
			require.True(t, r.Expires == 0 || r.Expires > time.Now().Add(40*time.Hour).UnixMilli(), "%s ends before the tokens that it hits", r.Data)
		}
	}
	check()
	// A process that trusts that issuer no more, or for shorter, purges no earlier.
	later := &clock{}
	later.Advance(2 * time.Hour) // old enough for the janitor
	again := serviceOn(t, st, func(c *apitoken.Config) { trust(c); c.Trust, c.Now = nil, later.Now })
	apitoken.Tidy(again, time.Now().Add(2*time.Hour))
	check()
}

// A rule that is made while the clock is behind lives as long as the tokens that others issued by the right time.
func TestRulesOfAClockThatFellBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, jump := range []time.Duration{-time.Hour, -365 * 24 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			t.Parallel()
			c := &clock{}
			st := tempStore(t)
			svc := serviceOn(t, st, func(cfg *apitoken.Config) { cfg.Now = c.Now })
			i := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour, Refresh: true})
			require.NoError(t, validate(svc, i.Access))
			c.Advance(jump)
			for _, target := range []apitoken.Target{apitoken.ByToken(i.Token.ID()), apitoken.ByGrant(i.Token.Grant()), apitoken.BySessions("alice"), apitoken.BySubject("alice")} {
				require.NoError(t, svc.Revoke(ctx, target, "while the clock is behind"))
			}
			c.Advance(-jump)
			apitoken.Tidy(svc, time.Now()) // takes away what has expired, and gives the rest its end
			apitoken.Tidy(svc, time.Now())
			page, err := st.List(ctx, store.Query{Kind: store.KindRule, Limit: 100})
			require.NoError(t, err)
			require.Len(t, page.Records, 4, "a rule was purged before the tokens that it hits were dead")
			for _, r := range page.Records {
				require.True(t, r.Expires == 0 || r.Expires > i.Token.ExpiresAt().UnixMilli(), "%s", r.Data)
			}
			require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
			_, err = refresh(svc, i.Refresh)
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
		})
	}
}

// A cut-off that a person names also hits what descends from before it: refreshed and exchanged tokens are younger, their
// session is not.
func TestACutOffHitsWhatDescendsFromBeforeIt(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now = c.Now })
	v := follower(t, &poll{svc: svc}, func(cfg *apitoken.ValidatorConfig) { cfg.Now = c.Now })
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "gateway", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}, Scopes: apitoken.Scopes{"orders"}, MayImpersonate: true})
	require.NoError(t, err)
	early := issue(t, svc, aliceSession)
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	c.Advance(10 * time.Second)
	cut := c.Now()
	c.Advance(10 * time.Second)
	require.NoError(t, svc.Sync(ctx)) // its view has aged with the clock
	renewed, err := refresh(svc, early.Refresh)
	require.NoError(t, err)
	exchange := func(token apitoken.Secret) *apitoken.Issued {
		i, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(token.Reveal()), Auth: apitoken.ClientAuth{ID: "gateway", Secret: secret}})
		require.NoError(t, err)
		return i
	}
	children := []*apitoken.Issued{renewed, exchange(renewed.Access), exchange(key)}
	late := issue(t, svc, aliceSession)
	children2 := []*apitoken.Issued{late, exchange(late.Access)}
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice").IssuedBefore(cut), "breach until then"))
	follows(t, v, svc)
	for n, i := range children {
		require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "%d", n)
		require.ErrorIs(t, validate(v, i.Access), apitoken.ErrRevoked, "%d", n)
	}
	for n, i := range children2 {
		require.NoError(t, validate(svc, i.Access), "%d", n)
		require.NoError(t, validate(v, i.Access), "%d", n)
	}
	require.ErrorIs(t, validate(svc, key), apitoken.ErrRevoked)
}

func TestACutOffInTheFutureIsNow(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now = c.Now })
	i := issue(t, svc, aliceSession)
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice").IssuedBefore(c.Now().AddDate(50, 0, 0)), "a slip of the pen"))
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
	next := issue(t, svc, aliceSession)
	require.NoError(t, validate(svc, next.Access), "nobody is locked out until then")
	require.NoError(t, svc.Revoke(ctx, apitoken.Everything().IssuedBefore(c.Now().AddDate(50, 0, 0)), "another"))
	require.ErrorIs(t, validate(svc, next.Access), apitoken.ErrRevoked)
	require.NoError(t, validate(svc, issue(t, svc, aliceSession).Access))
}

// A rule that could not be written together with what it came with is written all the same.
func TestARuleWhoseCompanionLostARaceIsWritten(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	inner := tempStore(t)
	st := &faulty{Store: inner}
	svc := serviceOn(t, st, func(c *apitoken.Config) { c.Roles = map[string]apitoken.Scopes{"admin": {"orders", "users"}} })
	other := serviceOn(t, inner, func(c *apitoken.Config) { c.Roles = map[string]apitoken.Scopes{"admin": {"orders", "users"}} })
	require.NoError(t, other.Sync(ctx))
	i := issue(t, svc, apitoken.Request{Subject: "alice", Roles: []string{"admin"}})
	require.NoError(t, validate(svc, i.Access))
	st.onApply(func(context.Context, *store.Change) (error, error) { return errEngine, nil })
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, svc.SetRole(short, "admin", apitoken.Scopes{"orders"}), apitoken.ErrUnavailable)
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "in force here, and it goes on trying")
	require.NoError(t, other.SetRole(ctx, "admin", apitoken.Scopes{"orders", "users", "more"}), "someone else is faster: the role is another one now")
	require.NoError(t, validate(other, i.Access))
	st.onApply(nil)
	require.Eventually(t, func() bool { return errors.Is(validate(other, i.Access), apitoken.ErrRevoked) }, 30*time.Second, 5*time.Millisecond, "the rule was dropped with the role's change")
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
}

// The view that a token is said to be checked against is one whose rules it was checked against.
func TestFreshnessIsOfTheRulesThatWereChecked(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	w := &poll{svc: svc}
	v := follower(t, w, nil)
	i := issue(t, svc, aliceSession)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var last atomic.Int64 // the highest position at which the token was good
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if tok, err := v.Validate(ctx, apitoken.Bearer(i.Access.Reveal())); err == nil {
					for n := tok.Freshness().Position.N; ; {
						if old := last.Load(); old >= n || last.CompareAndSwap(old, n) {
							break
						}
					}
				}
			}
		})
	}
	for range 50 {
		require.NoError(t, svc.Revoke(ctx, apitoken.ByToken("other"), "noise"))
	}
	require.NoError(t, svc.Revoke(ctx, apitoken.ByToken(i.Token.ID()), "stolen"))
	at := svc.Freshness().Position
	follows(t, v, svc)
	close(stop)
	wg.Wait()
	require.Less(t, last.Load(), at.N, "good, and said to be checked against the rule that ends it")
	require.ErrorIs(t, validate(v, i.Access), apitoken.ErrRevoked)
}

// Validate and Recheck give one verdict, with a skew too.
func TestRecheckAgrees(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now, cfg.Validation.Skew = c.Now, 30*time.Second })
	i := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Minute})
	tok, err := svc.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
	require.NoError(t, err)
	require.NoError(t, svc.Recheck(ctx, tok))
	c.Advance(75 * time.Second)
	require.NoError(t, svc.Sync(ctx))
	require.NoError(t, validate(svc, i.Access), "within the skew")
	require.NoError(t, svc.Recheck(ctx, tok))
	c.Advance(20 * time.Second)
	require.NoError(t, svc.Sync(ctx))
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrExpired)
	require.ErrorIs(t, svc.Recheck(ctx, tok), apitoken.ErrExpired)
}

// changingKeys is a key set that a test changes.
type changingKeys struct{ doc atomic.Pointer[[]byte] }

func (k *changingKeys) JWKS(context.Context, string) ([]byte, error) { return *k.doc.Load(), nil }

// A key that its issuer takes out of the set ends what it signed, in long-lived streams too.
func TestAKeyThatIsWithdrawnEndsStreams(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	keys := &changingKeys{}
	doc, err := svc.SigningKeys.JWKS(ctx, "")
	require.NoError(t, err)
	keys.doc.Store(&doc)
	w := &poll{svc: svc}
	v := follower(t, w, func(c *apitoken.ValidatorConfig) { c.Trust[0].Keys = keys })
	i := issue(t, svc, aliceSession)
	tok, err := v.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
	require.NoError(t, err)
	require.NoError(t, v.Recheck(ctx, tok))
	stranger := service(t, nil)
	other, err := stranger.SigningKeys.JWKS(ctx, "")
	require.NoError(t, err)
	theirs, err := stranger.Revocations(ctx, store.Position{}, 1)
	require.NoError(t, err)
	keys.doc.Store(&other)
	w.set(func(_ store.Position, v *feed.View) error { v.KeySet = theirs.KeySet; return nil })
	require.Eventually(t, func() bool { return errors.Is(validate(v, i.Access), apitoken.ErrInvalidToken) }, 30*time.Second, 5*time.Millisecond)
	require.ErrorIs(t, v.Recheck(ctx, tok), apitoken.ErrInvalidToken)
}

// Rules that no living token can meet are forgotten by validators without a store too.
func TestFollowersForgetDeadRules(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	w := &poll{svc: svc}
	v := follower(t, w, nil)
	for range 10 {
		require.NoError(t, svc.Revoke(ctx, apitoken.ByToken("x"+time.Now().String()), "noise"))
	}
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "for long"))
	follows(t, v, svc)
	require.Equal(t, 11*2-10, apitoken.FeedRules(v, testIssuer), "a token's rule is one entry, a subject's two")
	apitoken.SweepFeed(v, testIssuer, time.Now())
	require.Equal(t, 12, apitoken.FeedRules(v, testIssuer), "not before they end")
	apitoken.SweepFeed(v, testIssuer, time.Now().Add(3*time.Hour))
	require.Equal(t, 2, apitoken.FeedRules(v, testIssuer))
}

// The questions about opaque tokens end with the validator that asked them.
func TestCloseEndsQuestionsToTheIssuer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
	require.NoError(t, err)
	w := &poll{svc: svc}
	asked, ended := make(chan struct{}), make(chan struct{})
	v := follower(t, w, func(c *apitoken.ValidatorConfig) {
		c.Introspect = func(ctx context.Context, _ string) (apitoken.Introspection, error) {
			close(asked)
			<-ctx.Done()
			close(ended)
			return apitoken.Introspection{}, ctx.Err()
		}
	})
	verdict := make(chan error, 1)
	go func() { verdict <- validate(v, key) }()
	<-asked
	require.NoError(t, v.Close())
	select {
	case <-ended:
	default:
		t.Fatal("Close returned before the question had ended")
	}
	require.ErrorIs(t, <-verdict, apitoken.ErrUnavailable)
	require.ErrorIs(t, validate(v, key), apitoken.ErrUnavailable, "and no new one begins")
}

// Answers about one API key may be kept under several texts: whoever holds a key can write its tag otherwise. A change of
// the key voids all of them.
func TestAChangeVoidsEveryAnswerAboutAKey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, nil)
	made, text, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	_, other, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
	require.NoError(t, err)
	w := &poll{svc: svc}
	var asked atomic.Int64
	v := follower(t, w, func(cfg *apitoken.ValidatorConfig) {
		cfg.Introspect = func(ctx context.Context, _ string) (apitoken.Introspection, error) {
			asked.Add(1)
			return svc.Adapter().Introspect(ctx, text.Reveal())
		}
		cfg.OpaqueFor, cfg.Now, cfg.Validation.MaxStaleness = 10*time.Minute, c.Now, time.Hour
	})
	good := func(s apitoken.Secret, questions int64) {
		t.Helper()
		require.NoError(t, validate(v, s))
		require.Equal(t, questions, asked.Load())
	}
	good(text, 1)
	c.Advance(6 * time.Minute)
	good(other, 2)
	c.Advance(6 * time.Minute)
	good(text, 3) // its answer was too old, and is replaced
	good(other, 3)
	_, err = svc.APIKeys.Rename(ctx, made.ID, "another name")
	require.NoError(t, err)
	follows(t, v, svc)
	good(text, 4)
	good(other, 5) // the answer under the other text did not stay
}

// What the cache says that it holds is what it keeps alive.
func TestEntriesWeighWhatTheyKeepAlive(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	for name, r := range map[string]apitoken.Request{
		"plain":  {Subject: "alice"},
		"claims": {Subject: "alice", Claims: map[string]string{"blob": string(bytes.Repeat([]byte("x"), 3900))}},
		"many":   {Subject: "alice", Claims: map[string][]int{"list": make([]int, 900)}},
	} {
		i := issue(t, svc, r)
		require.NoError(t, validate(svc, i.Access))
		weight, held, ok := apitoken.CacheWeight(svc, i.Access.Reveal())
		require.True(t, ok, "%s is kept", name)
		require.GreaterOrEqual(t, weight, held, "%s", name)
	}
}

// When state cannot be read, the declared bound decides, on first sight and on second: refused past MaxStaleness, or let
// through and said so, up to the hard limit. Only authentic tokens ever see it, and opaque ones never go past it.
func TestStaleness(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
	require.NoError(t, err)
	for name, with := range map[string]apitoken.Validation{
		"strict":            {MaxStaleness: time.Minute},
		"going on":          {MaxStaleness: time.Minute, InsecureServeStale: 5 * time.Minute},
		"strict, no cache":  {MaxStaleness: time.Minute, Cache: apitoken.NewCache(0)},
		"going on no cache": {MaxStaleness: time.Minute, InsecureServeStale: 5 * time.Minute, Cache: apitoken.NewCache(0)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &clock{}
			w := &poll{svc: svc}
			v := follower(t, w, func(cfg *apitoken.ValidatorConfig) {
				cfg.Now, cfg.Validation, cfg.Introspect, cfg.OpaqueFor = c.Now, with, svc.Adapter().Introspect, time.Hour
			})
			known := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour})
			require.NoError(t, validate(v, known.Access))
			require.NoError(t, validate(v, key))
			w.set(func(store.Position, *feed.View) error { return errors.New("cut off") })
			junk := apitoken.NewSecret(flip(known.Access.Reveal(), 10))
			for _, d := range []time.Duration{3 * time.Minute, 10 * time.Minute} {
				c.Advance(d - time.Duration(c.ahead.Load()))
				fresh := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour})
				for sight := range 2 {
					for _, s := range []apitoken.Secret{known.Access, fresh.Access} {
						tok, err := v.Validate(ctx, apitoken.Bearer(s.Reveal()))
						if with.InsecureServeStale > d {
							require.NoError(t, err, "sight %d", sight)
							require.True(t, tok.Freshness().Stale, "and it says so")
							require.Greater(t, tok.Freshness().Age, with.MaxStaleness)
							require.NoError(t, v.Recheck(ctx, tok))
							continue
						}
						require.ErrorIs(t, err, apitoken.ErrUnavailable, "sight %d", sight)
						require.True(t, tok.IsZero())
					}
					require.ErrorIs(t, validate(v, key), apitoken.ErrUnavailable, "never for opaque tokens")
					require.ErrorIs(t, validate(v, junk), apitoken.ErrInvalidToken, "strangers learn nothing of it")
				}
			}
			c.ahead.Store(0)
			w.set(nil)
			require.Eventually(t, func() bool { return validate(v, known.Access) == nil && validate(v, key) == nil }, 30*time.Second, 5*time.Millisecond, "it recovers by itself")
		})
	}
}

// Whatever is on its way into the cache when a revocation is acknowledged: nobody who asks afterwards gets a yes.
func TestFillingTheCacheRacesRevocation(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	targets := []func(i *apitoken.Issued) apitoken.Target{
		func(i *apitoken.Issued) apitoken.Target { return apitoken.ByToken(i.Token.ID()) },
		func(i *apitoken.Issued) apitoken.Target { return apitoken.ByGrant(i.Token.Grant()) },
		func(i *apitoken.Issued) apitoken.Target { return apitoken.BySubject(i.Token.Subject()) },
		func(*apitoken.Issued) apitoken.Target { return apitoken.Everything() },
	}
	for round := range rounds {
		i := issue(t, svc, aliceSession)
		var acknowledged atomic.Bool
		var late atomic.Int64 // good, asked after the acknowledgement
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for n := 0; n < 5; {
					after := acknowledged.Load()
					if validate(svc, i.Access) == nil && after {
						late.Add(1)
					}
					if after {
						n++
					}
				}
			})
		}
		require.NoError(t, svc.Revoke(ctx, targets[round%len(targets)](i), "now"))
		acknowledged.Store(true)
		wg.Wait()
		require.Zero(t, late.Load(), "round %d", round)
	}
}

// The same for a key that is withdrawn while tokens that it signed are being verified.
func TestFillingTheCacheRacesACompromisedKey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	for round := range 10 {
		i := issue(t, svc, aliceSession)
		list, err := svc.SigningKeys.List(ctx)
		require.NoError(t, err)
		kid := ""
		for _, k := range list {
			if k.State == "active" {
				kid = k.ID
			}
		}
		var acknowledged atomic.Bool
		var late atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for n := 0; n < 5; {
					after := acknowledged.Load()
					if validate(svc, i.Access) == nil && after {
						late.Add(1)
					}
					if after {
						n++
					}
				}
			})
		}
		require.NoError(t, svc.SigningKeys.Compromise(ctx, kid, "stolen"))
		acknowledged.Store(true)
		wg.Wait()
		require.Zero(t, late.Load(), "round %d", round)
	}
}
