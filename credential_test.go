package apitoken_test

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// changed are all texts of the shape and with the checksum of text in which one byte of the payload is another one.
func changed(t *testing.T, text string) (list []string) {
	t.Helper()
	const prefix = "at"
	kind := opaque.KindOf(text)
	if kind == opaque.Refresh {
		was, err := opaque.DecodeRefresh(text, prefix)
		require.NoError(t, err)
		var seq [4]byte
		fields := func(x *opaque.RefreshToken) [][]byte { return [][]byte{x.KID[:], x.Grant[:], seq[:], x.S[:], x.Tag[:]} }
		for f := range 5 {
			for i := range len(fields(was)[f]) {
				x := *was
				binary.BigEndian.PutUint32(seq[:], x.Seq)
				fields(&x)[f][i] ^= 1
				x.Seq = binary.BigEndian.Uint32(seq[:])
				list = append(list, opaque.EncodeRefresh(prefix, &x))
			}
		}
		return list
	}
	was, err := opaque.DecodeKey(text, prefix, kind)
	require.NoError(t, err)
	fields := func(x *opaque.Key) [][]byte { return [][]byte{x.KID[:], x.ID[:], x.Secret[:], x.Tag[:]} }
	for f := range 4 {
		for i := range len(fields(was)[f]) {
			x := *was
			fields(&x)[f][i] ^= 1
			list = append(list, opaque.EncodeKey(prefix, kind, &x))
		}
	}
	return list
}

// One credential has one text. No changed byte is accepted, whether this process knows the credential or not, though the
// checksum, which is public, is put right; and RevokeLeaked ends what is accepted, and nothing for a text that is not.
func TestNoChangedByteOfACredentialIsAccepted(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	svc := serviceOn(t, st, nil)
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
	require.NoError(t, err)
	c, secret, err := svc.Clients.Create(ctx, apitoken.Client{GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	registration, err := svc.Clients.RegistrationToken(ctx, c.ID)
	require.NoError(t, err)
	ticket, err := svc.Prepare(ctx, apitoken.Request{Subject: "alice"}, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	// A client secret that another service with the same prefix has generated, and that the host declares here.
	_, foreign, err := service(t, nil).Clients.Create(ctx, apitoken.Client{})
	require.NoError(t, err)
	require.NoError(t, svc.Clients.Declare(ctx, apitoken.Client{ID: "moved"}, foreign))

	for _, x := range []struct {
		name string
		text string
		take func(*apitoken.Service, string) error
		once bool // the credential itself is taken once
	}{
		{"API key", key.Reveal(), func(s *apitoken.Service, text string) error {
			return validate(s, apitoken.NewSecret(text))
		}, false},
		{"introspected API key", key.Reveal(), func(s *apitoken.Service, text string) error {
			x, err := s.Adapter().Introspect(ctx, text)
			if err == nil && !x.Active {
				err = apitoken.ErrInvalidToken
			}
			return err
		}, false},
		{"client secret", secret.Reveal(), func(s *apitoken.Service, text string) error {
			_, err := s.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: c.ID, Secret: apitoken.NewSecret(text)})
			return err
		}, false},
		{"declared secret", foreign.Reveal(), func(s *apitoken.Service, text string) error {
			_, err := s.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "moved", Secret: apitoken.NewSecret(text)})
			return err
		}, false},
		{"registration token", registration.Reveal(), func(s *apitoken.Service, text string) error {
			_, err := s.Clients.Registered(ctx, c.ID, apitoken.NewSecret(text))
			return err
		}, false},
		{"ticket", ticket.Reveal(), func(s *apitoken.Service, text string) error {
			_, err := s.Redeem(ctx, apitoken.Redemption{Ticket: text})
			return err
		}, true},
		{"refresh token", issue(t, svc, apitoken.Request{Subject: "alice", Refresh: true}).Refresh.Reveal(), func(s *apitoken.Service, text string) error {
			_, err := s.Refresh(ctx, apitoken.RefreshRequest{Token: text})
			return err
		}, true},
	} {
		variants := changed(t, x.text)
		process := serviceOn(t, st, nil)
		refused := func(when string) {
			for i, text := range variants {
				require.Error(t, x.take(process, text), "%s, %s, byte %d", x.name, when, i)
			}
		}
		refused("cold")
		if !x.once {
			require.NoError(t, x.take(process, x.text), x.name)
			require.NoError(t, x.take(process, x.text), x.name)
			refused("warm")
		}
		for i, text := range variants {
			n, err := process.RevokeLeaked(ctx, []byte(text), "leak")
			require.NoError(t, err)
			require.Zero(t, n, "%s, byte %d", x.name, i)
		}
		require.NoError(t, x.take(process, x.text), x.name)
		if x.once {
			refused("warm")
		}
	}
	for _, text := range []string{key.Reveal(), secret.Reveal(), foreign.Reveal(), registration.Reveal(), ticket.Reveal()} {
		n, err := svc.RevokeLeaked(ctx, []byte(text), "leak")
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
}
