package apitoken_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const (
	legacy  = "https://legacy.example.com"
	partner = "https://partner.example.com"
)

// ownKeys gives legacy keys of its own; the service takes the tokens of all its audiences.
func ownKeys(alg string) func(*apitoken.Config) {
	return func(c *apitoken.Config) {
		c.Audiences = []string{legacy, partner}
		c.Validation.Audiences = c.Audiences
		if alg != "" {
			c.AudienceAlgorithms = map[string]string{legacy: alg}
		}
	}
}

func on(c *clock, alg string) func(*apitoken.Config) {
	return func(cfg *apitoken.Config) {
		ownKeys(alg)(cfg)
		cfg.Now = c.Now
	}
}

func issueFor(t testing.TB, svc *apitoken.Service, audiences ...string) *apitoken.Issued {
	t.Helper()
	return issue(t, svc, apitoken.Request{Subject: "alice", Audiences: audiences, Refresh: true, Lifetime: time.Hour})
}

// signedBy is the algorithm and the kid of a token's header.
func signedBy(t testing.TB, i *apitoken.Issued) (alg, kid string) {
	t.Helper()
	head, _, _ := strings.Cut(i.Access.Reveal(), ".")
	doc, err := base64.RawURLEncoding.DecodeString(head)
	require.NoError(t, err)
	var h struct{ Alg, KID string }
	require.NoError(t, json.Unmarshal(doc, &h))
	return h.Alg, h.KID
}

// keysOf is the ring of an audience, the newest key first.
func keysOf(t testing.TB, svc *apitoken.Service, audience string) (list []apitoken.SigningKey) {
	t.Helper()
	keys, err := svc.SigningKeys.List(context.Background())
	require.NoError(t, err)
	for _, k := range keys {
		if k.Audience == audience {
			list = append(list, k)
		}
	}
	return list
}

func statesOf(t testing.TB, svc *apitoken.Service, audience string) (list []string) {
	t.Helper()
	for _, k := range keysOf(t, svc, audience) {
		list = append(list, k.State)
	}
	return list
}

func published(t testing.TB, svc *apitoken.Service) (kids []string) {
	t.Helper()
	doc, err := svc.SigningKeys.JWKS(context.Background(), "")
	require.NoError(t, err)
	var set struct{ Keys []struct{ KID string } }
	require.NoError(t, json.Unmarshal(doc, &set))
	for _, k := range set.Keys {
		kids = append(kids, k.KID)
	}
	return kids
}

// Of several audiences each that has keys of its own is signed for by them, from the first token on, and everybody validates.
func TestAnAudienceHasKeysOfItsOwn(t *testing.T) {
	t.Parallel()
	svc := service(t, ownKeys("RS256"))
	at := func(audience string) *apitoken.JWTValidator {
		return follower(t, &poll{svc: svc}, func(c *apitoken.ValidatorConfig) { c.Audience = audience })
	}
	here, there := at(testAudience), at(legacy)
	for _, x := range []struct {
		audiences []string
		alg       string
	}{
		{nil, "ES256"}, {[]string{testAudience}, "ES256"}, {[]string{partner}, "ES256"},
		{[]string{legacy}, "RS256"}, {[]string{legacy, testAudience}, "ES256"}, {[]string{testAudience, legacy}, "ES256"},
	} {
		i := issueFor(t, svc, x.audiences...)
		alg, kid := signedBy(t, i)
		require.Equal(t, x.alg, alg, "for %v", x.audiences)
		require.Contains(t, published(t, svc), kid)
		for range 2 { // fresh, and from the cache
			require.NoError(t, validate(svc, i.Access), "for %v", x.audiences)
			for aud, v := range map[string]*apitoken.JWTValidator{testAudience: here, legacy: there} {
				if err := validate(v, i.Access); i.Token.Audiences()[0] == aud || len(x.audiences) == 2 {
					require.NoError(t, err, "for %v at %s", x.audiences, aud)
				} else {
					require.ErrorIs(t, err, apitoken.ErrInvalidToken)
				}
			}
		}
	}
	// A grant for both, narrowed at a refresh.
	both := issueFor(t, svc, testAudience, legacy)
	for _, x := range [][2]string{{legacy, "RS256"}, {testAudience, "ES256"}} {
		n, err := svc.Refresh(context.Background(), apitoken.RefreshRequest{Token: both.Refresh.Reveal(), Audiences: []string{x[0]}})
		require.NoError(t, err)
		both = n
		alg, _ := signedBy(t, n)
		require.Equal(t, x[1], alg)
		require.NoError(t, validate(svc, n.Access))
	}
	require.Len(t, keysOf(t, svc, legacy), 1)
	require.Equal(t, "RS256", keysOf(t, svc, legacy)[0].Algorithm)
	require.Contains(t, string(keysOf(t, svc, legacy)[0].JWK), legacy)
	require.NotContains(t, string(keysOf(t, svc, "")[0].JWK), "apitoken_aud")
}

// Who has the key of one audience makes no tokens for another, here or where the key set alone is known.
func TestAnAudiencesKeySignsForNobodyElse(t *testing.T) {
	t.Parallel()
	svc := service(t, ownKeys("EdDSA"))
	remote := follower(t, &poll{svc: svc}, nil)
	for name, i := range map[string]*apitoken.Issued{"another": issueFor(t, svc, testAudience), "several": issueFor(t, svc, testAudience, legacy)} {
		require.NoError(t, validate(remote, i.Access))
		forged, err := apitoken.SignAs(svc, legacy, i.Access.Reveal())
		require.NoError(t, err)
		for _, v := range []apitoken.Validator{svc, remote} {
			_, err := v.Validate(context.Background(), apitoken.Bearer(forged))
			require.ErrorIs(t, err, apitoken.ErrInvalidToken, name)
		}
	}
	own, err := apitoken.SignAs(svc, legacy, issueFor(t, svc, legacy).Access.Reveal())
	require.NoError(t, err)
	_, err = svc.Validate(context.Background(), apitoken.Bearer(own))
	require.NoError(t, err, "the forgery fails because of the audience alone")
	// The common keys sign for all.
	common, err := apitoken.SignAs(svc, "", issueFor(t, svc, legacy).Access.Reveal())
	require.NoError(t, err)
	_, err = svc.Validate(context.Background(), apitoken.Bearer(common))
	require.NoError(t, err)
}

func TestAudiencesRotateApart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	st := memstore.New()
	one, two := serviceOn(t, st, on(c, "EdDSA")), serviceOn(t, st, on(c, "EdDSA"))
	tend := func(ahead time.Duration) {
		c.Advance(ahead)
		for _, svc := range []*apitoken.Service{one, two} {
			require.NoError(t, svc.Sync(ctx))
			apitoken.TendKeys(svc)
		}
	}
	tend(0)
	require.Equal(t, []string{"active"}, statesOf(t, two, legacy))
	_, common := signedBy(t, issueFor(t, one))
	_, first := signedBy(t, issueFor(t, one, legacy))

	// Compromise of one ends nothing of the others, and its successor signs at once, in both processes.
	others, own := issueFor(t, one), issueFor(t, one, legacy)
	require.NoError(t, one.SigningKeys.Compromise(ctx, first, "stolen"))
	tend(0)
	for _, svc := range []*apitoken.Service{one, two} {
		require.Error(t, validate(svc, own.Access))
		require.NoError(t, validate(svc, others.Access))
		require.Equal(t, []string{"active", "compromised"}, statesOf(t, svc, legacy))
		require.Equal(t, []string{"active"}, statesOf(t, svc, ""))
		require.NotContains(t, published(t, svc), first)
		alg, kid := signedBy(t, issueFor(t, svc, legacy))
		require.Equal(t, "EdDSA", alg)
		require.NotEqual(t, first, kid)
		require.NotEqual(t, common, kid)
	}
	_, err := refresh(two, own.Refresh)
	require.NoError(t, err, "sessions go on")

	// And the other way round.
	own = issueFor(t, one, legacy)
	_, kid := signedBy(t, own)
	require.NoError(t, two.SigningKeys.Compromise(ctx, common, "stolen"))
	tend(0)
	require.Error(t, validate(one, others.Access))
	require.NoError(t, validate(one, own.Access))
	_, still := signedBy(t, issueFor(t, one, legacy))
	require.Equal(t, kid, still)

	// By call, all: with a lead in each.
	require.NoError(t, one.SigningKeys.Rotate(ctx))
	tend(0)
	require.Equal(t, []string{"next", "active", "compromised"}, statesOf(t, two, legacy))
	require.Equal(t, []string{"next", "active", "compromised"}, statesOf(t, two, ""))
	_, still = signedBy(t, issueFor(t, two, legacy))
	require.Equal(t, kid, still)
	tend(16 * time.Minute)
	_, next := signedBy(t, issueFor(t, two, legacy))
	require.NotEqual(t, kid, next)
	require.NoError(t, validate(two, own.Access), "accepted until its own expiry")
	require.Equal(t, []string{"active", "retired", "compromised"}, statesOf(t, two, legacy))

	// By schedule, by one of the processes.
	tend(90*24*time.Hour - 15*time.Minute)
	require.Equal(t, []string{"next", "active", "compromised"}, statesOf(t, one, legacy))
	require.Equal(t, []string{"next", "active", "compromised"}, statesOf(t, one, ""))
	tend(time.Hour)
	_, last := signedBy(t, issueFor(t, two, legacy))
	require.NotEqual(t, next, last)
	require.Equal(t, []string{"active", "retired", "compromised"}, statesOf(t, one, legacy))
}

// The setting comes to a store that is in use, with another algorithm later, and goes again; processes with it and without it
// take each other's tokens all the time.
func TestAudienceKeysComeAndGo(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	st := memstore.New()
	without := serviceOn(t, st, on(c, ""))
	c.Advance(time.Hour)
	require.NoError(t, without.Sync(ctx))
	before := issueFor(t, without, legacy)
	start := func(alg string) *apitoken.Service {
		cfg := config(st)
		on(c, alg)(&cfg)
		svc, err := apitoken.New(cfg)
		require.NoError(t, err)
		return svc
	}
	tend := func(ahead time.Duration, list ...*apitoken.Service) {
		c.Advance(ahead)
		for _, svc := range list {
			require.NoError(t, svc.Sync(ctx))
			apitoken.TendKeys(svc)
		}
	}
	takes := func(i *apitoken.Issued, list ...*apitoken.Service) {
		t.Helper()
		for _, svc := range list {
			require.NoError(t, svc.Sync(ctx))
			require.NoError(t, validate(svc, i.Access))
		}
	}
	algs := func(svc *apitoken.Service) string { alg, _ := signedBy(t, issueFor(t, svc, legacy)); return alg }

	with := start("EdDSA")
	takes(before, with, without)
	require.Equal(t, []string{"next"}, statesOf(t, with, legacy))
	require.Equal(t, "ES256", algs(with), "validators do not know its key yet: the common one goes on")
	tend(16*time.Minute, with, without)
	require.Equal(t, "EdDSA", algs(with))
	require.Equal(t, "ES256", algs(without), "this process has no such setting")
	takes(issueFor(t, with, legacy), with, without)
	takes(issueFor(t, without, legacy), with, without)
	require.Equal(t, published(t, with), published(t, without))
	require.NoError(t, with.Close())

	with = start("ES256")
	require.Equal(t, "EdDSA", algs(with), "a change of the algorithm takes its lead")
	old := issueFor(t, with, legacy)
	tend(16*time.Minute, with, without)
	require.Equal(t, "ES256", algs(with))
	_, kid := signedBy(t, issueFor(t, with, legacy))
	require.Equal(t, kid, keysOf(t, with, legacy)[0].ID)
	takes(old, with, without)

	// Gone from the configuration: what was signed lives to its end, and the last key retires when its successor would be due.
	old = issueFor(t, with, legacy)
	require.NoError(t, with.Close())
	again := start("")
	takes(old, again, without)
	_, err := refresh(again, old.Refresh)
	require.NoError(t, err)
	tend(80*24*time.Hour, again, without)
	require.Equal(t, []string{"active"}, statesOf(t, again, legacy), "another process may still have the setting")
	tend(10*24*time.Hour+time.Hour, again, without)
	require.Equal(t, []string{"retired"}, statesOf(t, again, legacy))
	require.Equal(t, []string{"retired"}, statesOf(t, without, legacy))
	require.Contains(t, keyEvents(t, again), "retired: no process makes keys for its audience")
	tend(24*time.Hour, again, without)
	require.Empty(t, statesOf(t, again, legacy))
	require.NotContains(t, published(t, again), kid)
	require.NoError(t, again.Close())

	// And back.
	with = start("EdDSA")
	defer with.Close()
	require.Equal(t, "ES256", algs(with))
	tend(16*time.Minute, with, without)
	require.Equal(t, "EdDSA", algs(with))
	takes(issueFor(t, with, legacy), with, without)
}

// A process without the setting withdraws a key all the same: the common key signs until one that has it has made another.
func TestACompromisedAudienceKeyWithoutTheSetting(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	st := memstore.New()
	with, without := serviceOn(t, st, on(c, "EdDSA")), serviceOn(t, st, on(c, ""))
	own := issueFor(t, with, legacy)
	_, kid := signedBy(t, own)
	require.NoError(t, without.SigningKeys.Compromise(ctx, kid, "stolen"))
	require.NoError(t, with.Sync(ctx))
	require.Error(t, validate(with, own.Access))
	require.Error(t, validate(without, own.Access))
	i := issueFor(t, with, legacy)
	require.NoError(t, validate(without, i.Access))
	apitoken.TendKeys(with)
	c.Advance(16 * time.Minute)
	require.NoError(t, with.Sync(ctx))
	require.NoError(t, without.Sync(ctx))
	i = issueFor(t, with, legacy)
	alg, next := signedBy(t, i)
	require.Equal(t, "EdDSA", alg)
	require.NotEqual(t, kid, next)
	require.NoError(t, validate(without, i.Access))
}

func TestAnAudiencesSignerOutside(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	st := memstore.New()
	svc, other := serviceOn(t, st, on(c, "EdDSA")), serviceOn(t, st, on(c, "EdDSA"))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, err = svc.SigningKeys.ImportFor(ctx, partner, key, "ES256")
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "it has no keys of its own")
	c.Advance(time.Hour)
	got, err := svc.SigningKeys.ImportFor(ctx, legacy, key, "ES256")
	require.NoError(t, err)
	require.Equal(t, "next", got.State)
	require.Equal(t, legacy, got.Audience)
	_, err = svc.SigningKeys.Import(ctx, key, "ES256")
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "it signs for one audience alone")
	c.Advance(16 * time.Minute)
	require.NoError(t, other.Sync(ctx))
	require.NoError(t, svc.Sync(ctx))
	i := issueFor(t, svc, legacy)
	_, kid := signedBy(t, i)
	require.Equal(t, got.ID, kid)
	require.NoError(t, validate(other, i.Access))
	_, err = other.Issue(ctx, apitoken.Request{Subject: "alice", Audiences: []string{legacy}})
	require.ErrorIs(t, err, apitoken.ErrUnavailable, "it was not imported here: no other key stands in for it")
	_, err = other.SigningKeys.ImportFor(ctx, legacy, key, "ES256")
	require.NoError(t, err)
	require.NoError(t, validate(svc, issueFor(t, other, legacy).Access))
	_, public, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	common, err := svc.SigningKeys.Import(ctx, public, "EdDSA")
	require.NoError(t, err)
	require.Empty(t, common.Audience)
	c.Advance(16 * time.Minute)
	require.NoError(t, svc.Sync(ctx))
	_, kid = signedBy(t, issueFor(t, svc))
	require.Equal(t, common.ID, kid)
	_, kid = signedBy(t, issueFor(t, svc, legacy))
	require.Equal(t, got.ID, kid)
}

// RotateSecrets renews the keys of every audience.
func TestSecretsOfAudiencesRotate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := serviceOn(t, memstore.New(), func(cfg *apitoken.Config) {
		on(c, "EdDSA")(cfg)
		sealedOnly(localSeal(t, 1))(cfg)
	})
	old := []*apitoken.Issued{issueFor(t, svc), issueFor(t, svc, legacy)}
	require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
	for range 2 {
		c.Advance(16 * time.Minute)
		require.NoError(t, svc.Sync(ctx))
		apitoken.TendKeys(svc)
	}
	for n, i := range []*apitoken.Issued{issueFor(t, svc), issueFor(t, svc, legacy)} {
		_, was := signedBy(t, old[n])
		_, is := signedBy(t, i)
		require.NotEqual(t, was, is)
		require.NoError(t, validate(svc, i.Access))
		require.NoError(t, validate(svc, old[n].Access))
	}
	require.Contains(t, keyEvents(t, svc), "older root secrets prove no signing key any more")
	require.Len(t, keysOf(t, svc, legacy), 2)

	// A key outside is in nobody's root secret: it stays, and its record is proved by the new one.
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	outside, err := svc.SigningKeys.Import(ctx, private, "EdDSA")
	require.NoError(t, err)
	require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
	for range 2 {
		c.Advance(16 * time.Minute)
		require.NoError(t, svc.Sync(ctx))
		apitoken.TendKeys(svc)
	}
	i := issueFor(t, svc)
	_, kid := signedBy(t, i)
	require.Equal(t, outside.ID, kid)
	require.NoError(t, validate(svc, i.Access))
	require.Len(t, filter(keyEvents(t, svc), "older root secrets prove no signing key any more"), 2)
	require.Len(t, keysOf(t, svc, legacy), 3)
}

// Processes that start together make one key for each audience.
func TestStartsTogetherMakeOneKeyForEachAudience(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	var list [4]*apitoken.Service
	var wg sync.WaitGroup
	for n := range list {
		wg.Go(func() {
			cfg := config(st)
			ownKeys("EdDSA")(&cfg)
			cfg.AudienceAlgorithms[partner] = "ES256"
			list[n], _ = apitoken.New(cfg)
		})
	}
	wg.Wait()
	for _, svc := range list {
		require.NotNil(t, svc)
		t.Cleanup(func() { require.NoError(t, svc.Close()) })
	}
	require.Len(t, keyRecords(t, st, "sign."), 3)
	for _, from := range list {
		i := issueFor(t, from, legacy)
		for _, to := range list {
			require.NoError(t, validate(to, i.Access))
		}
	}
}

// What ends a key is covered by its MAC, as all of its record is: an edit leaves it out.
func TestTheEndOfAKeyIsNotWrittenByOthers(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	svc := serviceOn(t, st, ownKeys("EdDSA"))
	own := keysOf(t, svc, legacy)[0]
	rec, err := st.Get(context.Background(), store.KindKey, "sign."+own.ID)
	require.NoError(t, err)
	good := rec.Data
	// A service that runs makes another key at once where the one it had is left out; a closed one still reads.
	require.NoError(t, svc.Close())
	for _, edit := range []string{`"ends":1,"created"`, `"took":1,"ends":1,"created"`} {
		rec.Data = bytes.Replace(good, []byte(`"created"`), []byte(edit), 1)
		write(t, st, rec)
		require.Empty(t, keysOf(t, svc, legacy))
	}
	rec.Data = good
	write(t, st, rec)
	require.Equal(t, []string{"active"}, statesOf(t, svc, legacy))
}

// RotateSecrets ends the key of an audience that nobody names any more too: whoever has the old root secret may have it.
func TestSecretsRotateWithoutTheAudience(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	st := memstore.New()
	start := func(alg string) *apitoken.Service {
		return serviceOn(t, st, func(cfg *apitoken.Config) {
			if alg != "" {
				on(c, alg)(cfg)
			} else {
				cfg.Now = c.Now
			}
			cfg.KeyRotation = -1 // by the clock it would never go
			sealedOnly(localSeal(t, 1))(cfg)
		})
	}
	with := start("EdDSA")
	require.Equal(t, []string{"active"}, statesOf(t, with, legacy))
	require.NoError(t, with.Close())
	svc := start("")
	require.Equal(t, []string{"active"}, statesOf(t, svc, legacy))
	require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
	for range 3 {
		c.Advance(16 * time.Minute)
		require.NoError(t, svc.Sync(ctx))
		apitoken.TendKeys(svc)
	}
	require.Equal(t, []string{"retired"}, statesOf(t, svc, legacy))
}
