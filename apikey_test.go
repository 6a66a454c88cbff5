package apitoken_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func TestAPIKeyLife(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) {
		cfg.Now, cfg.Prefix, cfg.Limits.APIKeysPerSubject = c.Now, "acme", 2
		cfg.Lifetimes.APIKey = 24 * time.Hour
	})
	x, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "ci", Scopes: apitoken.Scopes{"deploy"}, Expires: c.Now().Add(time.Hour)})
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(secret.Reveal(), "acme_ak_"))
	require.True(t, strings.HasPrefix(secret.Reveal(), x.Start), "the first characters are shown in lists")
	require.Less(t, len(x.Start), 32)
	ctx2 := apitoken.WithOrigin(ctx, apitoken.Origin{Address: netip.MustParseAddr("192.0.2.7")})
	for range 3 {
		tok, err := svc.Validate(ctx2, apitoken.Bearer(secret.Reveal()))
		require.NoError(t, err)
		require.Equal(t, "bob", tok.Subject())
		require.True(t, tok.IsAPIKey())
		require.True(t, tok.Allows("deploy:staging"))
		require.False(t, tok.Allows("admin"))
	}
	got, err := svc.APIKeys.Get(ctx, x.ID)
	require.NoError(t, err)
	require.EqualValues(t, 3, got.Uses)
	require.Equal(t, "192.0.2.7", got.LastAddress)
	require.WithinDuration(t, c.Now(), got.LastUsed, time.Minute)
	_, err = svc.APIKeys.Rename(ctx, x.ID, "pipeline")
	require.NoError(t, err)
	require.NoError(t, validate(svc, secret))

	y, second, err := svc.APIKeys.Rotate(ctx, x.ID, 2*time.Hour)
	require.NoError(t, err)
	require.Equal(t, x.Expires.UnixMilli(), y.Expires.UnixMilli(), "rotation never extends the original expiry")
	require.NoError(t, validate(svc, secret), "the old secret works for the overlap")
	require.NoError(t, validate(svc, second))
	_, _, err = svc.APIKeys.Rotate(ctx, x.ID, time.Hour)
	require.ErrorIs(t, err, apitoken.ErrNotFound, "a key is rotated once")
	c.Advance(2 * time.Millisecond)
	_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "two"})
	require.NoError(t, err)
	_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "three"})
	require.ErrorIs(t, err, apitoken.ErrLimited)
	c.Advance(time.Hour + time.Second)
	require.NoError(t, svc.Sync(ctx))
	require.ErrorIs(t, validate(svc, secret), apitoken.ErrExpired)
	require.ErrorIs(t, validate(svc, second), apitoken.ErrExpired)
	z, third, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "three"})
	require.NoError(t, err)
	require.NoError(t, validate(svc, third))
	require.NoError(t, svc.APIKeys.Revoke(ctx, z.ID, "lost"))
	require.ErrorIs(t, validate(svc, third), apitoken.ErrRevoked)
	var names []string
	for k, err := range svc.APIKeys.Of(ctx, "bob", apitoken.Page{}) {
		require.NoError(t, err)
		names = append(names, k.Name)
	}
	require.Equal(t, []string{"three", "two", "pipeline", "pipeline"}, names, "newest first, the ended ones too")
	var how []string
	for _, e := range events(t, svc, apitoken.EventQuery{Type: event.APIKeyChanged, OldestFirst: true}) {
		require.Equal(t, "bob", e.Subject)
		how = append(how, strings.Fields(e.Reason)[0])
	}
	require.Equal(t, []string{"created", "renamed", "rotated", "created", "created"}, how)
}

func TestOneCallersViewOfAPIKeys(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	alice := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders"}}).Token
	hers, secret, err := svc.APIKeys.For(alice).Create(ctx, apitoken.APIKeyRequest{Name: "mine", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	require.Equal(t, "alice", hers.Subject)
	his, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "his"})
	require.NoError(t, err)
	view := svc.APIKeys.For(alice)
	_, _, err = view.Create(ctx, apitoken.APIKeyRequest{Name: "more", Scopes: apitoken.Scopes{"admin"}})
	require.ErrorIs(t, err, apitoken.ErrInvalidScope, "no more than the caller holds")
	_, _, err = view.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "x"})
	require.ErrorIs(t, err, apitoken.ErrDenied)
	for what, err := range map[string]error{
		"get":    second(view.Get(ctx, his.ID)),
		"rename": second(view.Rename(ctx, his.ID, "x")),
		"rotate": third(view.Rotate(ctx, his.ID, 0)),
		"revoke": view.Revoke(ctx, his.ID, "x"),
	} {
		require.ErrorIs(t, err, apitoken.ErrNotFound, what)
	}
	n := 0
	for k, err := range view.List(ctx, apitoken.Page{}) {
		require.NoError(t, err)
		require.Equal(t, hers.ID, k.ID)
		n++
	}
	require.Equal(t, 1, n)
	for range view.Of(ctx, "bob", apitoken.Page{}) {
		n++
	}
	require.Equal(t, 2, n, "one answer, the error")
	// Nothing by way of an API key, nor by nobody.
	tok, err := svc.Validate(ctx, apitoken.Bearer(secret.Reveal()))
	require.NoError(t, err)
	for _, caller := range []apitoken.Token{tok, {}} {
		_, _, err = svc.APIKeys.For(caller).Create(ctx, apitoken.APIKeyRequest{Name: "child"})
		require.ErrorIs(t, err, apitoken.ErrDenied)
		require.ErrorIs(t, second(svc.APIKeys.For(caller).Get(ctx, hers.ID)), apitoken.ErrDenied)
	}
	// A narrower caller may not rotate a wider key of the same subject.
	narrow := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"profile"}}).Token
	require.ErrorIs(t, third(svc.APIKeys.For(narrow).Rotate(ctx, hers.ID, 0)), apitoken.ErrInvalidScope)
}

func second[T any](_ T, err error) error        { return err }
func third[T, U any](_ T, _ U, err error) error { return err }

func TestUsesAreNeverExceeded(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	list := []*apitoken.Service{serviceOn(t, st, nil), serviceOn(t, st, nil)}
	for _, limit := range []uint64{1, 5, 200} {
		_, secret, err := list[0].APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: fmt.Sprint(limit), MaxUses: limit})
		require.NoError(t, err)
		for range 3 {
			require.NoError(t, validate(list[1], secret), "validating consumes nothing")
		}
		var ok, no atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range int(limit) {
					_, err := apitoken.Authorize(ctx, list[i%2], apitoken.Bearer(secret.Reveal()), apitoken.Authenticated())
					switch {
					case err == nil:
						ok.Add(1)
					default:
						no.Add(1)
					}
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, ok.Load(), int64(limit), "never above the limit")
		require.GreaterOrEqual(t, ok.Load(), int64(limit)-int64(limit/16), "a process may sit on one batch")
		if limit < 16 {
			require.EqualValues(t, limit, ok.Load(), "exact below 16")
		}
		require.NotZero(t, no.Load())
		_, err = apitoken.Authorize(ctx, list[0], apitoken.Bearer(secret.Reveal()), apitoken.AllOf("none"))
		require.ErrorIs(t, err, apitoken.ErrInsufficientScope, "a request that is refused consumes nothing")
	}
}

// In each interval of UTC a key has its uses anew, and no more than these, whichever processes take them and however they race at the
// turn.
func TestUsesAreFilledUpEachInterval(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	at := &clock{}
	at.Advance(time.Now().UTC().Truncate(24 * time.Hour).Add(36 * time.Hour).Sub(at.Now())) // noon
	st := memstore.NewWithClock(at.Now)
	withClock := func(c *apitoken.Config) { c.Now = at.Now }
	list := []*apitoken.Service{serviceOn(t, st, withClock), serviceOn(t, st, withClock)}
	advance := func(d time.Duration) {
		at.Advance(d)
		for _, svc := range list {
			require.NoError(t, svc.Sync(ctx))
		}
	}
	take := func(secret apitoken.Secret, tries int) (taken int64) {
		var n atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range tries {
					if authorize(list[i%2], ctx, secret, apitoken.Authenticated()) == nil {
						n.Add(1)
					}
				}
			})
		}
		wg.Wait()
		return n.Load()
	}
	for _, limit := range []uint64{5, 100} {
		advance(at.Now().UTC().Truncate(24 * time.Hour).Add(36 * time.Hour).Sub(at.Now())) // tomorrow's noon
		key, secret, err := list[0].APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", MaxUses: limit, UsesPer: "day"})
		require.NoError(t, err)
		require.Equal(t, "day", key.UsesPer)
		for day := range 3 {
			n := take(secret, int(limit))
			require.LessOrEqual(t, n, int64(limit), "day %d", day)
			require.GreaterOrEqual(t, n, int64(limit-limit/16), "a process may sit on one batch")
			err := errors.Join(authorize(list[0], ctx, secret, apitoken.Authenticated()), authorize(list[1], ctx, secret, apitoken.Authenticated()))
			require.ErrorIs(t, err, apitoken.ErrLimited)
			var e *apitoken.Error
			require.ErrorAs(t, err, &e)
			require.InDelta(t, 12*time.Hour, e.RetryAfter, float64(time.Hour), "until midnight")
			key, err = list[1].APIKeys.Get(ctx, key.ID)
			require.NoError(t, err)
			require.Equal(t, "exhausted", key.State(at.Now()))
			advance(24 * time.Hour)
			key, err = list[1].APIKeys.Get(ctx, key.ID)
			require.NoError(t, err)
			require.Equal(t, "active", key.State(at.Now()))
		}

		// Uses that a process reserved and did not take expire with the day.
		require.NoError(t, authorize(list[0], ctx, secret, apitoken.Authenticated()))
		advance(24 * time.Hour)
		require.LessOrEqual(t, take(secret, int(limit)), int64(limit))

		// A rotated key fills up with the one that it stands for.
		advance(24 * time.Hour)
		next, fresh, err := list[0].APIKeys.Rotate(ctx, key.ID, 72*time.Hour)
		require.NoError(t, err)
		require.Equal(t, "day", next.UsesPer)
		require.NoError(t, list[1].Sync(ctx))
		require.LessOrEqual(t, take(secret, int(limit))+take(fresh, int(limit)), int64(limit))
		advance(24 * time.Hour)
		require.LessOrEqual(t, take(fresh, int(limit))+take(secret, int(limit)), int64(limit))

		// The host gives it more at once, or less, or by the hour; what was used today counts.
		advance(24 * time.Hour)
		require.NotZero(t, take(fresh, int(limit)))
		_, err = edit(list[0].APIKeys, next.ID, func(x *apitoken.APIKey) { x.MaxUses += 16 })
		require.NoError(t, err)
		require.NoError(t, list[1].Sync(ctx))
		n := take(fresh, int(limit))
		require.LessOrEqual(t, n, int64(16+limit/16))
		require.NotZero(t, n)
		_, err = edit(list[0].APIKeys, next.ID, func(x *apitoken.APIKey) { x.MaxUses = 1 })
		require.NoError(t, err)
		require.NoError(t, list[1].Sync(ctx))
		require.Zero(t, take(fresh, 3))
		_, err = edit(list[0].APIKeys, next.ID, func(x *apitoken.APIKey) { x.UsesPer = "hour" })
		require.NoError(t, err)
		require.NoError(t, list[1].Sync(ctx))
		advance(time.Hour)
		require.EqualValues(t, 1, take(fresh, 3))
		_, err = edit(list[0].APIKeys, next.ID, func(x *apitoken.APIKey) { x.UsesPer = "" })
		require.NoError(t, err)
		advance(48 * time.Hour)
		require.Zero(t, take(fresh, 3), "it is filled up no more")
	}

	// The turn of the interval comes while they race.
	_, secret, err := list[0].APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", MaxUses: 40, UsesPer: "hour"})
	require.NoError(t, err)
	var turn sync.WaitGroup
	turn.Go(func() { at.Advance(time.Hour) })
	n := take(secret, 40)
	turn.Wait()
	require.LessOrEqual(t, n+take(secret, 40), int64(80))
}

func TestRate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now = c.Now })
	_, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "slow", Rate: apitoken.Rate{Burst: 3, Per: time.Hour}})
	require.NoError(t, err)
	call := func() error {
		_, err := apitoken.Authorize(ctx, svc, apitoken.Bearer(secret.Reveal()), apitoken.Authenticated())
		return err
	}
	for range 3 {
		require.NoError(t, call())
	}
	err = call()
	require.ErrorIs(t, err, apitoken.ErrLimited)
	var e *apitoken.Error
	require.ErrorAs(t, err, &e)
	require.InDelta(t, time.Hour, e.RetryAfter, float64(time.Minute))
	c.Advance(time.Hour)
	require.NoError(t, svc.Sync(ctx))
	require.NoError(t, call())
	require.ErrorIs(t, call(), apitoken.ErrLimited)
}

func TestAPIKeyRequestsThatContradict(t *testing.T) {
	t.Parallel()
	svc := service(t, func(c *apitoken.Config) {
		c.Scopes = map[apitoken.Scope]string{"orders": "all orders"}
		c.Lifetimes.APIKey = time.Hour
	})
	_, _, err := svc.Clients.Create(context.Background(), apitoken.Client{ID: "web", Public: true})
	require.NoError(t, err)
	for what, r := range map[string]apitoken.APIKeyRequest{
		"no subject": {Name: "x"}, "control": {Subject: "a\nb"}, "client": {Subject: "web"}, "first party": {Subject: "first-party"}, "long subject": {Subject: strings.Repeat("s", 256)},
		"long name": {Subject: "a", Name: strings.Repeat("n", 101)}, "bidi name": {Subject: "a", Name: "a\u202eb"}, "unknown scope": {Subject: "a", Scopes: apitoken.Scopes{"order"}}, "no scope": {Subject: "a", Scopes: apitoken.Scopes{""}},
		"past": {Subject: "a", Expires: time.Unix(1, 0)}, "far": {Subject: "a", Expires: time.Now().Add(2 * time.Hour)}, "half a rate": {Subject: "a", Rate: apitoken.Rate{Burst: 1}}, "negative rate": {Subject: "a", Rate: apitoken.Rate{Burst: -1, Per: 1}},
		"claims": {Subject: "a", Claims: 1}, "reserved claim": {Subject: "a", Claims: map[string]any{"sub": "root"}},
	} {
		_, _, err := svc.APIKeys.Create(context.Background(), r)
		require.Error(t, err, what)
		require.NotErrorIs(t, err, apitoken.ErrUnavailable, what)
	}
}

func TestAPIKeysThatWereTamperedWith(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc, stranger := service(t, nil), service(t, nil)
	_, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	good := secret.Reveal()
	require.NoError(t, validate(svc, secret))
	require.ErrorIs(t, validate(stranger, secret), apitoken.ErrInvalidToken)
	for i := range len(good) {
		require.ErrorIs(t, validate(svc, apitoken.NewSecret(flip(good, i))), apitoken.ErrInvalidToken, "character %d", i)
		require.ErrorIs(t, validate(svc, apitoken.NewSecret(good[:i])), errOf(i), "cut at %d", i)
	}
	require.ErrorIs(t, validate(svc, apitoken.NewSecret(good+"0")), apitoken.ErrInvalidToken)
	require.ErrorIs(t, validate(svc, apitoken.NewSecret(strings.ToUpper(good))), apitoken.ErrInvalidToken)
}

func errOf(n int) error {
	if n == 0 {
		return apitoken.ErrNoToken
	}
	return apitoken.ErrInvalidToken
}

func TestManyAskForOneUnknownKey(t *testing.T) {
	t.Parallel()
	inner := &counting{Store: tempStore(t)}
	svc := serviceOn(t, inner, nil)
	_, secret, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	before := inner.gets.Load()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if err := validate(svc, secret); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, inner.gets.Load()-before, "one read, however many ask")
}

// While both halves of a rotation work, they work for one limit.
func TestRotationGivesNoMoreUses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	x, one, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", MaxUses: 10})
	require.NoError(t, err)
	use := func(s apitoken.Secret) error {
		_, err := apitoken.Authorize(ctx, svc, apitoken.Bearer(s.Reveal()), apitoken.Authenticated())
		return err
	}
	for range 3 {
		require.NoError(t, use(one))
	}
	y, two, err := svc.APIKeys.Rotate(ctx, x.ID, time.Hour)
	require.NoError(t, err)
	require.EqualValues(t, 10, y.MaxUses)
	_, three, err := svc.APIKeys.Rotate(ctx, y.ID, time.Hour)
	require.NoError(t, err)
	good := 0
	for i := range 30 {
		err := use([]apitoken.Secret{one, two, three}[i%3])
		if err == nil {
			good++
			continue
		}
		require.ErrorIs(t, err, apitoken.ErrLimited)
	}
	require.Equal(t, 7, good)
	_, _, err = svc.APIKeys.Rotate(ctx, y.ID, time.Hour)
	require.ErrorIs(t, err, apitoken.ErrNotFound)
}

func TestARotatedKeySaysWhenItEnds(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	gw := confidential(t, svc, apitoken.Client{ID: "gw", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}, Scopes: apitoken.Scopes{"orders"}, MayImpersonate: true})
	x, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	require.NoError(t, validate(svc, secret))
	_, _, err = svc.APIKeys.Rotate(ctx, x.ID, time.Minute)
	require.NoError(t, err)
	tok, err := svc.Validate(ctx, apitoken.Bearer(secret.Reveal()))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Minute), tok.ExpiresAt(), 30*time.Second)
	i, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(secret.Reveal()), Auth: gw, Lifetime: time.Hour})
	require.NoError(t, err)
	require.False(t, i.Token.ExpiresAt().After(tok.ExpiresAt()), "what is made of it ends with it")
}

// A token knows no number of uses: to make one of a key is a use, or a key for one use would be good for any number.
func TestAnExchangeIsAUse(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	gw := confidential(t, svc, apitoken.Client{ID: "gw", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}, Scopes: apitoken.Scopes{"orders"}, MayImpersonate: true})
	for _, r := range []apitoken.APIKeyRequest{{MaxUses: 2}, {Rate: apitoken.Rate{Burst: 2, Per: time.Hour}}} {
		r.Subject, r.Scopes = "bob", apitoken.Scopes{"orders:read"}
		_, secret, err := svc.APIKeys.Create(ctx, r)
		require.NoError(t, err)
		exchange := func(scopes ...apitoken.Scope) error {
			_, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(secret.Reveal()), Auth: gw, Scopes: scopes})
			return err
		}
		for range 3 {
			require.ErrorIs(t, exchange("admin"), apitoken.ErrInvalidScope, "what is refused uses nothing")
		}
		require.NoError(t, exchange())
		require.NoError(t, exchange())
		require.ErrorIs(t, exchange(), apitoken.ErrLimited)
	}
}

func TestAViewGivesNoClaimsThatItsCallerLacks(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	type claims struct {
		Tenant string `json:"tenant,omitempty"`
		Admin  bool   `json:"admin,omitempty"`
	}
	i := issue(t, svc, apitoken.Request{Subject: "alice", Claims: claims{Tenant: "acme <&>"}})
	tok, err := svc.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
	require.NoError(t, err)
	for _, caller := range []apitoken.Token{i.Token, tok} {
		view := svc.APIKeys.For(caller)
		_, secret, err := view.Create(ctx, apitoken.APIKeyRequest{Claims: claims{Tenant: "acme <&>"}})
		require.NoError(t, err)
		tok, err := svc.Validate(ctx, apitoken.Bearer(secret.Reveal()))
		require.NoError(t, err)
		var got claims
		require.NoError(t, tok.Claims(&got))
		require.Equal(t, "acme <&>", got.Tenant)
		for _, bad := range []claims{{Tenant: "other"}, {Admin: true}, {Tenant: "acme <&>", Admin: true}} {
			_, _, err = view.Create(ctx, apitoken.APIKeyRequest{Claims: bad})
			require.ErrorIs(t, err, apitoken.ErrDenied)
		}
		_, _, err = view.Create(ctx, apitoken.APIKeyRequest{})
		require.NoError(t, err)
		wide, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Claims: claims{Admin: true}})
		require.NoError(t, err)
		require.ErrorIs(t, third(view.Rotate(ctx, wide.ID, 0)), apitoken.ErrDenied)
	}
}

// Who waits for another's count of uses stops when his request does.
func TestAStoreThatHangsHoldsNobodyBeyondHisRequest(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, nil)
	_, secret, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "bob", MaxUses: 5})
	require.NoError(t, err)
	tok, err := svc.Validate(context.Background(), apitoken.Bearer(secret.Reveal()))
	require.NoError(t, err)
	hangs, goOn := make(chan struct{}), make(chan struct{})
	between(st, "spent", func() { close(hangs); <-goOn })
	first := make(chan error, 1)
	go func() { first <- svc.Consume(context.Background(), tok) }()
	<-hangs
	ctx, cancel := context.WithCancel(context.Background())
	waits := make(chan error, 1)
	go func() { waits <- svc.Consume(ctx, tok) }()
	cancel()
	require.ErrorIs(t, <-waits, apitoken.ErrUnavailable)
	close(goOn)
	require.NoError(t, <-first)
}

// Whoever knows the format can make what has its shape and checksum, and name any key: the store is not asked about it.
func TestJunkAPIKeysReadNoStore(t *testing.T) {
	t.Parallel()
	inner := &counting{Store: tempStore(t)}
	svc := serviceOn(t, inner, nil)
	_, secret, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	good, err := opaque.DecodeKey(secret.Reveal(), "at", opaque.APIKey)
	require.NoError(t, err)
	before := inner.gets.Load()
	for i := range 100 {
		junk := *good
		junk.ID = opaque.NewID(time.Now())
		if i%2 == 0 {
			rand.Read(junk.KID[:])
		}
		require.ErrorIs(t, validate(svc, apitoken.NewSecret(opaque.EncodeKey("at", opaque.APIKey, &junk))), apitoken.ErrInvalidToken)
	}
	require.Equal(t, before, inner.gets.Load())
	require.NoError(t, validate(svc, secret))
}
