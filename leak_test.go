package apitoken_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/store"
)

// machine is a client with tokens of its own and of its users.
func machine(t *testing.T, svc *apitoken.Service, id string) apitoken.ClientAuth {
	t.Helper()
	_, secret, err := svc.Clients.Create(context.Background(), apitoken.Client{ID: id, Scopes: apitoken.Scopes{"orders"}, MayImpersonate: true,
		GrantTypes: []string{"client_credentials", "refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange"}})
	require.NoError(t, err)
	return apitoken.ClientAuth{ID: id, Secret: secret}
}

func leak(t *testing.T, svc *apitoken.Service, what ...apitoken.Secret) int {
	t.Helper()
	n, err := svc.RevokeLeaked(context.Background(), leakText(what...), "found in a gist")
	require.NoError(t, err)
	return n
}

func leakText(what ...apitoken.Secret) []byte {
	var b strings.Builder
	for _, s := range what {
		b.WriteString(`{"secret":"` + s.Reveal() + "\"}\n")
	}
	return []byte(b.String())
}

func leaks(t *testing.T, svc *apitoken.Service) []apitoken.Event {
	t.Helper()
	return events(t, svc, apitoken.EventQuery{Type: event.Leaked})
}

func knows(svc *apitoken.Service, a apitoken.ClientAuth) error {
	_, err := svc.Clients.Authenticate(context.Background(), a)
	return err
}

func TestALeakedClientSecretEnds(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	svc, other := serviceOn(t, st, nil), serviceOn(t, st, nil)
	web, next := machine(t, svc, "web"), machine(t, svc, "next")
	own := issue(t, svc, apitoken.Request{Auth: web, Scopes: apitoken.Scopes{"orders:read"}})
	user := issue(t, svc, apitoken.Request{Subject: "alice", Client: "web", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	passed, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(own.Access.Reveal()), Auth: next})
	require.NoError(t, err)

	require.Equal(t, 1, leak(t, svc, web.Secret, web.Secret))
	require.ErrorIs(t, knows(svc, web), apitoken.ErrInvalidClient)
	require.NoError(t, knows(svc, next))
	require.ErrorIs(t, validate(svc, own.Access), apitoken.ErrRevoked, "who had the secret may have got it")
	require.ErrorIs(t, validate(svc, passed.Access), apitoken.ErrRevoked, "and what came of it")
	require.NoError(t, validate(svc, user.Access), "to which the secret alone gives nobody a right")
	list := leaks(t, svc)
	require.Len(t, list, 1)
	require.Equal(t, "web", list[0].Client)
	require.Equal(t, "found in a gist", list[0].Reason)
	require.Equal(t, "client secret", list[0].Extra["leaked"])

	require.NoError(t, other.Sync(ctx))
	require.ErrorIs(t, knows(other, web), apitoken.ErrInvalidClient)
	require.ErrorIs(t, validate(other, own.Access), apitoken.ErrRevoked)
	again := serviceOn(t, st, nil)
	require.ErrorIs(t, knows(again, web), apitoken.ErrInvalidClient, "nor after a start")

	for _, s := range []*apitoken.Service{svc, other, again} {
		require.Zero(t, leak(t, s, web.Secret), "it has ended")
	}
	require.Len(t, leaks(t, svc), 1)

	web.Secret, err = svc.Clients.RotateSecret(ctx, "web", time.Hour)
	require.NoError(t, err)
	require.NoError(t, knows(svc, web), "its only secret was the leaked one: from now on there is another")
	require.NoError(t, validate(svc, issue(t, svc, apitoken.Request{Auth: web}).Access))
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: user.Refresh.Reveal(), Auth: web})
	require.NoError(t, err)
}

func TestTheOtherSecretOfALeakedOneGoesOn(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	clk := &clock{}
	svc := service(t, func(c *apitoken.Config) { c.Now = clk.Now })
	for _, x := range []struct{ id, leaked string }{{"a", "old"}, {"b", "new"}} {
		auth := map[string]apitoken.ClientAuth{"old": machine(t, svc, x.id)}
		fresh, err := svc.Clients.RotateSecret(ctx, x.id, time.Hour)
		require.NoError(t, err)
		auth["new"] = apitoken.ClientAuth{ID: x.id, Secret: fresh}
		require.Equal(t, 1, leak(t, svc, auth[x.leaked].Secret))
		for which, a := range auth {
			if which == x.leaked {
				require.ErrorIs(t, knows(svc, a), apitoken.ErrInvalidClient, x.id)
			} else {
				require.NoError(t, knows(svc, a), x.id)
			}
		}
	}
	auth := machine(t, svc, "c")
	_, err := svc.Clients.RotateSecret(ctx, "c", time.Minute)
	require.NoError(t, err)
	clk.Advance(time.Minute)
	require.Zero(t, leak(t, svc, auth.Secret), "of a secret whose overlap is over nothing is left")

	off := machine(t, svc, "d")
	_, err = svc.Clients.Update(ctx, "d", func(c *apitoken.Client) error { c.Disabled = true; return nil })
	require.NoError(t, err)
	require.Equal(t, 1, leak(t, svc, off.Secret))
	_, err = svc.Clients.Update(ctx, "d", func(c *apitoken.Client) error { c.Disabled = false; return nil })
	require.NoError(t, err)
	require.ErrorIs(t, knows(svc, off), apitoken.ErrInvalidClient, "a client that was disabled meanwhile does not get it back")
}

// countedStore counts what is read and written.
type countedStore struct {
	store.Store
	gets, applies atomic.Int64
}

func (c *countedStore) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	c.gets.Add(1)
	return c.Store.Get(ctx, k, id)
}

func (c *countedStore) Apply(ctx context.Context, x *store.Change) (store.Commit, error) {
	c.applies.Add(1)
	return c.Store.Apply(ctx, x)
}

// Whoever knows an ID, or can compute a checksum, ends nothing and costs nothing, and does not cover up what is real.
func TestOnlyTheCredentialItselfEndsIt(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &countedStore{Store: tempStore(t)}
	svc := serviceOn(t, st, nil)
	foreign := service(t, nil)
	prefixed := service(t, func(c *apitoken.Config) { c.Prefix = "zz" })
	web := machine(t, svc, "web")
	code, err := svc.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	x, apiKey, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "ci"})
	require.NoError(t, err)
	access := issue(t, svc, aliceSession)

	var junk []apitoken.Secret
	for _, f := range []*apitoken.Service{foreign, prefixed} {
		a := machine(t, f, "web")
		c, err := f.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
		require.NoError(t, err)
		junk = append(junk, a.Secret, c)
	}
	for kind, s := range map[opaque.Kind]apitoken.Secret{opaque.ClientSecret: web.Secret, opaque.Ticket: code, opaque.APIKey: apiKey} {
		good, err := opaque.DecodeKey(s.Reveal(), "at", kind)
		require.NoError(t, err)
		for n, change := range []func(*opaque.Key){
			func(k *opaque.Key) { k.Secret[31] ^= 1 },
			func(k *opaque.Key) { k.Tag[0] ^= 1; k.Secret[0] ^= 1 },
			func(k *opaque.Key) { rand.Read(k.Secret[:]); rand.Read(k.KID[:]) },
			func(k *opaque.Key) { k.Secret, k.Tag = [32]byte{}, [16]byte{} },
			func(k *opaque.Key) { k.ID[15] ^= 1 },
		} {
			forged := *good
			change(&forged)
			junk = append(junk, apitoken.NewSecret(opaque.EncodeKey("at", kind, &forged)))
			for _, as := range []opaque.Kind{opaque.ClientSecret, opaque.Ticket, opaque.APIKey} {
				if as != kind && n == 0 {
					junk = append(junk, apitoken.NewSecret(opaque.EncodeKey("at", as, good))) // genuine, as what it is not
				}
			}
		}
		junk = append(junk, apitoken.NewSecret(s.Reveal()[:len(s.Reveal())-1]), apitoken.NewSecret(opaque.EncodeKey("zz", kind, good)), apitoken.NewSecret(good.ID.String()))
	}
	for range 120 { // more than are acted on
		var k opaque.Key
		rand.Read(k.KID[:])
		rand.Read(k.Secret[:])
		for _, kind := range []opaque.Kind{opaque.ClientSecret, opaque.Ticket, opaque.APIKey} {
			junk = append(junk, apitoken.NewSecret(opaque.EncodeKey("at", kind, &k)))
		}
	}
	gets, applies := st.gets.Load(), st.applies.Load()
	require.Zero(t, leak(t, svc, junk...))
	require.Equal(t, gets, st.gets.Load(), "junk reads nothing")
	require.Equal(t, applies, st.applies.Load())
	require.Empty(t, leaks(t, svc))
	require.NoError(t, knows(svc, web))
	require.NoError(t, validate(svc, apiKey))

	require.Equal(t, 4, leak(t, svc, append(junk, web.Secret, code, apiKey, access.Access)...), "behind any number of decoys")
	require.ErrorIs(t, knows(svc, web), apitoken.ErrInvalidClient)
	require.ErrorIs(t, validate(svc, apiKey), apitoken.ErrRevoked)
	require.ErrorIs(t, validate(svc, access.Access), apitoken.ErrRevoked)
	_, err = svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	_, err = svc.APIKeys.Get(ctx, x.ID)
	require.NoError(t, err)
}

// What has the shape of our API keys and the prefix of another service is no imported key, whatever forms those have: neither Validate
// nor a search for leaks asks the host or the store about it.
func TestKeysOfAnotherServiceAreNoImportedOnes(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var asked atomic.Int64
	st := &countedStore{Store: tempStore(t)}
	svc := serviceOn(t, st, func(c *apitoken.Config) {
		c.KeyHashes = map[string]keyhash.Form{"any": {
			Lookup: func(key string) string { asked.Add(1); return key },
			Verify: func(string, string) bool { return true },
		}}
	})
	var k opaque.Key
	rand.Read(k.Secret[:])
	foreign := opaque.EncodeKey("zz", opaque.APIKey, &k)
	gets := st.gets.Load()
	require.ErrorIs(t, validate(svc, apitoken.NewSecret(foreign)), apitoken.ErrInvalidToken)
	require.Zero(t, leak(t, svc, apitoken.NewSecret(foreign)))
	_, err := svc.TargetOf(ctx, foreign)
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	require.Zero(t, asked.Load())
	require.Equal(t, gets, st.gets.Load())
}

// Tokens are found where people leave them: in URLs, escaped or not, in file names, behind a look-alike.
func TestAccessTokensInTheirSurroundings(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	for _, around := range []string{"%s", "token=%s&x=1", "https%%3A%%2F%%2Fapp%%2Fcb%%3Faccess_token%%3D%s%%26x", "jwt_%s.txt", "api.example.com.%s", "eyJhbGciOiJFUzI1NiJ9%s",
		"eyJ.eyJ.eyJ.%s", "x.y.eyJeyJ-%s", "(%s)", "\x00%s\xff", "%[1]s.%[1]s"} {
		i := issue(t, svc, aliceSession)
		n, err := svc.RevokeLeaked(context.Background(), fmt.Appendf(nil, around, i.Access.Reveal()), "found")
		require.NoError(t, err)
		require.Equal(t, 1, n, around)
		require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, around)
	}
	for _, junk := range []string{"", ".", "..", "...", "ey", "eyJ.", "eyJ..", "eyJ.eyJ", "eyJ.eyJ.", ".eyJ.eyJ.eyJ", strings.Repeat("eyJ", 300_000), strings.Repeat("eyJ.", 250_000), strings.Repeat("eyJeyJ.", 140_000)} {
		n, err := svc.RevokeLeaked(context.Background(), []byte(junk), "found")
		require.NoError(t, err)
		require.Zero(t, n)
	}
}

// A process that has not heard yet issues to whoever has the leaked secret: what it made is not handed out.
func TestNothingIsIssuedPastALeak(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &faulty{Store: tempStore(t)}
	here, behind := serviceOn(t, st.Store, nil), serviceOn(t, st, nil)
	web := machine(t, here, "web")
	require.NoError(t, behind.Sync(ctx))
	var once sync.Once
	st.onApply(func(context.Context, *store.Change) (error, error) {
		once.Do(func() { require.Equal(t, 1, leak(t, here, web.Secret)) })
		return nil, nil
	})
	_, err := behind.Issue(ctx, apitoken.Request{Auth: web, Scopes: apitoken.Scopes{"orders:read"}})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient)

	// Nor on the word of an adapter that confirmed the client before.
	fresh, err := here.Clients.RotateSecret(ctx, "web", 0)
	require.NoError(t, err)
	_, confirmed, err := here.Clients.Confirm(ctx, apitoken.ClientAuth{ID: "web", Secret: fresh})
	require.NoError(t, err)
	require.NoError(t, knows(here, confirmed))
	require.Equal(t, 1, leak(t, here, fresh))
	require.ErrorIs(t, knows(here, confirmed), apitoken.ErrInvalidClient)
}

// While the store does not answer, what has leaked is refused here, and is ended everywhere once it does: also where the
// write was done all the same, or somebody changed the client in between.
func TestALeakWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func() (before, after error){
		"not written":     func() (error, error) { return errEngine, nil },
		"written, unsaid": func() (error, error) { return nil, errEngine },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			st := &faulty{Store: tempStore(t)}
			here, other := serviceOn(t, st, nil), serviceOn(t, st.Store, nil)
			web := machine(t, here, "web")
			own := issue(t, here, apitoken.Request{Auth: web})
			code, err := here.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
			require.NoError(t, err)
			registration, err := here.Clients.RegistrationToken(ctx, "web")
			require.NoError(t, err)
			require.NoError(t, other.Sync(ctx))
			var down atomic.Bool
			st.onApply(func(_ context.Context, c *store.Change) (error, error) {
				if down.Load() && len(c.Puts) > 0 {
					return fault()
				}
				return nil, nil
			})
			down.Store(true)
			n, err := here.RevokeLeaked(ctx, leakText(web.Secret, code, registration), "found")
			require.ErrorIs(t, err, apitoken.ErrUnavailable)
			require.Zero(t, n)
			require.ErrorIs(t, knows(here, web), apitoken.ErrInvalidClient)
			require.ErrorIs(t, validate(here, own.Access), apitoken.ErrRevoked)
			_, err = here.Clients.Registered(ctx, "web", registration)
			require.ErrorIs(t, err, apitoken.ErrInvalidToken)
			_, err = here.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
			_, err = other.Clients.Update(ctx, "web", func(c *apitoken.Client) error { c.Name = "Web"; return nil })
			require.NoError(t, err)
			down.Store(false)
			require.Eventually(t, func() bool { return len(leaks(t, here)) == 3 }, time.Minute, 5*time.Millisecond)
			require.NoError(t, other.Sync(ctx))
			require.ErrorIs(t, knows(other, web), apitoken.ErrInvalidClient)
			require.ErrorIs(t, validate(other, own.Access), apitoken.ErrRevoked)
			_, err = other.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
			_, err = other.Clients.Registered(ctx, "web", registration)
			require.ErrorIs(t, err, apitoken.ErrInvalidToken)
			c, err := other.Clients.Get(ctx, "web")
			require.NoError(t, err)
			require.Equal(t, "Web", c.Name)

			// What was held goes with the answer: another secret of the client is as good as ever.
			web.Secret, err = other.Clients.RotateSecret(ctx, "web", 0)
			require.NoError(t, err)
			require.Eventually(t, func() bool {
				i, err := here.Issue(ctx, apitoken.Request{Auth: web})
				return err == nil && validate(here, i.Access) == nil
			}, time.Minute, 5*time.Millisecond)
		})
	}
}

// reused is the context of one request after the other, as web frameworks have it that keep their contexts in a pool.
type reused struct {
	context.Context
	request atomic.Pointer[context.Context]
}

func (r *reused) Value(key any) any { return (*r.request.Load()).Value(key) }

// What ends something in the background, since the store was away, says who asked for it and from where. The context of the call may be
// another request's by then.
func TestWhatIsEndedLaterNamesWhoAsked(t *testing.T) {
	t.Parallel()
	background := context.Background()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, nil)
	web := machine(t, svc, "web")
	code, err := svc.Prepare(background, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	keys, err := svc.SigningKeys.List(background)
	require.NoError(t, err)
	var down atomic.Bool
	st.onApply(func(_ context.Context, c *store.Change) (error, error) {
		if down.Load() && len(c.Puts) > 0 {
			return errEngine, nil
		}
		return nil, nil
	})

	ctx := &reused{Context: background}
	serve := func(actor, request string) {
		now := apitoken.WithOrigin(apitoken.WithActor(background, actor), apitoken.Origin{RequestID: request})
		ctx.request.Store(&now)
	}
	serve("admin", "1")
	down.Store(true)
	_, err = svc.RevokeLeaked(ctx, leakText(web.Secret, code), "found")
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	require.ErrorIs(t, svc.SigningKeys.Compromise(ctx, keys[0].ID, "stolen"), apitoken.ErrUnavailable)
	serve("somebody else", "2")
	down.Store(false)

	require.Eventually(t, func() bool { return svc.Backlog().Revocations == 0 }, time.Minute, 5*time.Millisecond)
	list := append(leaks(t, svc), events(t, svc, apitoken.EventQuery{Type: event.Revoked})...)
	require.Len(t, list, 4, "two leaks, what the client got for itself, and what the key signed")
	for _, e := range list {
		require.Equal(t, "admin", e.Actor, "%s", e)
		require.Equal(t, "1", e.RequestID, "%s", e)
	}
}

// lines is a log that a test reads while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestADeclaredSecretThatLeakedStaysOut(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	log := &lines{}
	svc := service(t, func(c *apitoken.Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	elsewhere := service(t, nil)
	c := apitoken.Client{ID: "partner", GrantTypes: []string{"client_credentials"}}
	one, two := machine(t, elsewhere, "one").Secret, machine(t, elsewhere, "two").Secret // made by another database
	twin := c
	twin.ID = "twin"
	require.NoError(t, svc.Clients.Declare(ctx, c, one, two))
	require.NoError(t, svc.Clients.Declare(ctx, twin, one))
	require.Equal(t, 2, leak(t, svc, one), "with everybody who has it")
	for _, id := range []string{"partner", "twin"} {
		require.ErrorIs(t, knows(svc, apitoken.ClientAuth{ID: id, Secret: one}), apitoken.ErrInvalidClient)
	}
	require.NotContains(t, log.String(), "found in a leak")
	for range 2 { // the program starts again, with the same configuration
		changes := len(events(t, svc, apitoken.EventQuery{Type: event.ClientChanged}))
		require.NoError(t, svc.Clients.Declare(ctx, c, one, two))
		require.NoError(t, svc.Clients.Declare(ctx, twin, one))
		require.Len(t, events(t, svc, apitoken.EventQuery{Type: event.ClientChanged}), changes, "it is so already")
		require.ErrorIs(t, knows(svc, apitoken.ClientAuth{ID: "partner", Secret: one}), apitoken.ErrInvalidClient)
		require.NoError(t, knows(svc, apitoken.ClientAuth{ID: "partner", Secret: two}))
		require.ErrorIs(t, knows(svc, apitoken.ClientAuth{ID: "twin", Secret: one}), apitoken.ErrInvalidClient)
	}
	require.Contains(t, log.String(), "found in a leak")
	require.NotContains(t, log.String(), one.Reveal())
	require.NoError(t, svc.Clients.Declare(ctx, twin, two))
	require.NoError(t, knows(svc, apitoken.ClientAuth{ID: "twin", Secret: two}))
	require.NoError(t, svc.Clients.Declare(ctx, twin, one, two))
	require.ErrorIs(t, knows(svc, apitoken.ClientAuth{ID: "twin", Secret: one}), apitoken.ErrInvalidClient, "nor later")
	require.Equal(t, 2, leak(t, svc, two))
}

// A host may have chosen what looks like one of ours, or bring one of a service with another prefix.
func TestChosenSecretsThatLookGenerated(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	prefixed := service(t, func(c *apitoken.Config) { c.Prefix = "zz" })
	for i, secret := range []apitoken.Secret{apitoken.NewSecret("my_cs_chosen-by-somebody"), machine(t, prefixed, "x").Secret} {
		id := []string{"a", "b"}[i]
		require.NoError(t, svc.Clients.Declare(ctx, apitoken.Client{ID: id}, secret))
		require.NoError(t, knows(svc, apitoken.ClientAuth{ID: id, Secret: secret}))
		require.ErrorIs(t, knows(svc, apitoken.ClientAuth{ID: id, Secret: apitoken.NewSecret("my_cs_something-else-of-it")}), apitoken.ErrInvalidClient)
	}
	_, err := apitoken.HashSecret(machine(t, svc, "y").Secret)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
}

func TestALeakedRegistrationTokenEnds(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	web := machine(t, svc, "web")
	own := issue(t, svc, apitoken.Request{Auth: web})
	token, err := svc.Clients.RegistrationToken(ctx, "web")
	require.NoError(t, err)
	require.Equal(t, 1, leak(t, svc, token))
	_, err = svc.Clients.Registered(ctx, "web", token)
	require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	require.NoError(t, knows(svc, web), "its secret is another thing")
	require.NoError(t, validate(svc, own.Access))
	require.Zero(t, leak(t, svc, token))
	require.Len(t, leaks(t, svc), 1)
	require.Equal(t, "registration token", leaks(t, svc)[0].Extra["leaked"])
}

func TestALeakedTicketEnds(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	clk := &clock{}
	svc := service(t, func(c *apitoken.Config) { c.Now = clk.Now })
	prepare := func() apitoken.Secret {
		code, err := svc.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
		require.NoError(t, err)
		return code
	}
	redeem := func(code apitoken.Secret) (*apitoken.Issued, error) {
		return svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	}
	code, other := prepare(), prepare()
	require.Equal(t, 1, leak(t, svc, code, code))
	_, err := redeem(code)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.Zero(t, leak(t, svc, code))
	list := leaks(t, svc)
	require.Len(t, list, 1)
	require.Equal(t, "alice", list[0].Subject)
	require.Equal(t, "ticket", list[0].Extra["leaked"])

	i, err := redeem(other)
	require.NoError(t, err, "one does not hit the other")
	require.Equal(t, 1, leak(t, svc, other))
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "who redeemed it may have found it")
	_, err = refresh(svc, i.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	_, err = redeem(other)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.Zero(t, leak(t, svc, other))
	list = leaks(t, svc)
	require.Len(t, list, 2)

	late := prepare()
	clk.Advance(time.Minute)
	require.Equal(t, 1, leak(t, svc, late), "no clock that goes back brings it to life")
	clk.Advance(-time.Minute)
	_, err = redeem(late)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
}

// Whoever comes first, nothing that a leaked ticket got is alive when RevokeLeaked has returned.
func TestALeakAgainstAUseInParallel(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	list := []*apitoken.Service{serviceOn(t, st, nil), serviceOn(t, st, nil)}
	for round := range 40 {
		code, err := list[0].Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
		require.NoError(t, err)
		before := len(leaks(t, list[0]))
		var i *apitoken.Issued
		var ended atomic.Int64
		var wg sync.WaitGroup
		wg.Go(func() {
			var err error
			if i, err = list[round%2].Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()}); err != nil && !errors.Is(err, apitoken.ErrInvalidGrant) {
				t.Error(err)
			}
		})
		for range 2 {
			wg.Go(func() {
				n, err := list[0].RevokeLeaked(ctx, leakText(code), "found")
				if err != nil {
					t.Error(err)
				}
				ended.Add(int64(n))
			})
		}
		wg.Wait()
		require.GreaterOrEqual(t, ended.Load(), int64(1))
		require.Len(t, leaks(t, list[0]), before+int(ended.Load()))
		for _, svc := range list {
			require.NoError(t, svc.Sync(ctx))
			if i != nil {
				require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
			}
			_, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
		}
	}
}

// A store that loses its latest writes brings back no leaked secret and no leaked ticket: the rules on them are put back, and
// the janitor takes the secret out of its record before they go.
func TestAStoreThatLosesALeak(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &swapped{}
	first := tempStore(t)
	st.Store(first)
	svc := serviceOn(t, st, nil)
	web := machine(t, svc, "web")
	registration, err := svc.Clients.RegistrationToken(ctx, "web")
	require.NoError(t, err)
	code, err := svc.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Hour})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "replica.db")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	require.NoError(t, err)
	require.NoError(t, first.Backup(ctx, f))
	require.NoError(t, f.Close())
	require.Equal(t, 3, leak(t, svc, web.Secret, code, registration))

	replica := openStore(t, path)
	st.Store(replica)
	require.NoError(t, svc.Sync(ctx))
	dead := func(s *apitoken.Service) {
		t.Helper()
		require.ErrorIs(t, knows(s, web), apitoken.ErrInvalidClient)
		_, err := s.Clients.Registered(ctx, "web", registration)
		require.ErrorIs(t, err, apitoken.ErrInvalidToken)
		_, err = s.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
		require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	}
	dead(svc)
	require.Eventually(t, func() bool {
		p, err := replica.List(ctx, store.Query{Kind: store.KindRule})
		return err == nil && len(p.Records) == 4
	}, time.Minute, 5*time.Millisecond, "the rules are not written back")
	later := &clock{}
	later.Advance(2 * time.Hour) // old enough for the janitor
	other := serviceOn(t, replica, func(c *apitoken.Config) { c.Restored, c.Now = apitoken.ReplayedRestored, later.Now })
	dead(other)
	record := func() string {
		r, err := replica.Get(ctx, store.KindClient, "web")
		require.NoError(t, err)
		return string(r.Data)
	}
	require.Contains(t, record(), `"secrets"`)
	apitoken.Tidy(other, later.Now())
	require.NotContains(t, record(), `"secrets"`)
	require.NotContains(t, record(), `"registration"`)
	dead(other)
	require.NoError(t, other.Clients.Declare(ctx, apitoken.Client{ID: "web"}, web.Secret))
	dead(other)
}

// Who changes the client at the same moment does not write the secret back.
func TestALeakAgainstChangesOfTheClient(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	list := []*apitoken.Service{serviceOn(t, st, nil), serviceOn(t, st, nil)}
	for round := range 15 {
		id := fmt.Sprint("client", round)
		auth := machine(t, list[0], id)
		c, err := list[0].Clients.Get(ctx, id)
		require.NoError(t, err)
		require.NoError(t, list[1].Sync(ctx))
		var wg sync.WaitGroup
		var fresh apitoken.Secret
		for i, f := range []func() error{
			func() error {
				n, err := list[0].RevokeLeaked(ctx, leakText(auth.Secret), "found")
				if err == nil && n != 1 {
					err = fmt.Errorf("%d ended", n)
				}
				return err
			},
			func() (err error) { fresh, err = list[1].Clients.RotateSecret(ctx, id, time.Hour); return err },
			func() error {
				_, err := list[0].Clients.Update(ctx, id, func(c *apitoken.Client) error { c.Name = "changed"; return nil })
				return err
			},
			func() error { return list[1].Clients.Declare(ctx, c, auth.Secret) },
		} {
			if i == 1 && round%2 == 1 || i == 3 && round%2 == 0 { // one of them makes the secrets what it says
				continue
			}
			wg.Go(func() {
				if err := f(); err != nil && !errors.Is(err, apitoken.ErrUnavailable) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, svc := range list {
			require.NoError(t, svc.Sync(ctx))
			require.ErrorIs(t, knows(svc, auth), apitoken.ErrInvalidClient)
			if !fresh.IsZero() {
				require.NoError(t, knows(svc, apitoken.ClientAuth{ID: id, Secret: fresh}))
			}
		}
	}
}

// A record that nobody can read is tried again for ever, and keeps no other revocation from the store.
func TestALeakThatCanNotBeWrittenBlocksNoOther(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &faulty{Store: tempStore(t)}
	here, other := serviceOn(t, st, nil), serviceOn(t, st.Store, nil)
	i := issue(t, here, aliceSession)
	code, err := here.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	k, err := opaque.DecodeKey(code.Reveal(), "at", opaque.Ticket)
	require.NoError(t, err)
	r, err := st.Store.Get(ctx, "ticket", k.ID.String())
	require.NoError(t, err)
	damage := &store.Change{ID: [16]byte{1}}
	damage.Puts = []store.Put{{Record: store.Record{Kind: r.Kind, ID: r.ID, Subject: r.Subject, Client: r.Client, Expires: r.Expires, Data: []byte(`{"v":1,"later":true}`)}, Expect: r.Version}}
	_, err = st.Store.Apply(ctx, damage)
	require.NoError(t, err)
	_, err = here.RevokeLeaked(ctx, leakText(code), "found")
	require.ErrorIs(t, err, apitoken.ErrUnavailable)

	var down atomic.Bool
	st.onApply(func(context.Context, *store.Change) (error, error) {
		if down.Load() {
			return errEngine, nil
		}
		return nil, nil
	})
	down.Store(true)
	require.ErrorIs(t, here.Revoke(ctx, apitoken.BySubject("alice"), "left"), apitoken.ErrUnavailable)
	down.Store(false)
	require.Eventually(t, func() bool {
		return other.Sync(ctx) == nil && errors.Is(validate(other, i.Access), apitoken.ErrRevoked)
	}, time.Minute, 5*time.Millisecond)
}

// countingReads counts the reads of a store.
type countingReads struct {
	store.Store
	reads atomic.Int64
}

func (c *countingReads) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	c.reads.Add(1)
	return c.Store.Get(ctx, kind, id)
}

// One dead credential that stands in a text a thousand times is looked up once.
func TestALeakThatRepeatsItself(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &countingReads{Store: tempStore(t)}
	svc := serviceOn(t, st, nil)
	code, err := svc.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	require.Equal(t, 1, leak(t, svc, code))
	before := st.reads.Load()
	n, err := svc.RevokeLeaked(ctx, []byte(strings.Repeat(code.Reveal()+"\n", 1000)), "paste")
	require.NoError(t, err)
	require.Zero(t, n)
	require.Less(t, st.reads.Load()-before, int64(10))
}
