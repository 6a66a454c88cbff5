package jws

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

func TestSignersMakeWhatParseTakes(t *testing.T) {
	t.Parallel()
	for alg, k := range testKeys(t) {
		for _, remote := range []bool{false, true} {
			s, err := NewSigner(`a "quoted" kid\`, alg, k.private, remote)
			require.NoError(t, err)
			payload := AppendClaims(nil, &Claims{Issuer: "https://a.example.com", Subject: "älice\n", Expires: 2, IssuedAt: 1}, []byte(`{"own":[1]}`))
			token, err := s.Sign(context.Background(), "at+jwt", payload)
			require.NoError(t, err)
			var tok Token
			require.NoError(t, Parse(token, fuzzLimit, &tok))
			require.Equal(t, Header{Alg: alg, KID: `a "quoted" kid\`, Typ: "at+jwt"}, tok.Header)
			require.Equal(t, "älice\n", tok.Claims.Subject)
			require.Equal(t, `{"own":[1]}`, string(tok.PrivateClaims()))
			require.NoError(t, s.Public.Verify(tok.SigningInput, tok.Signature))
			_, err = jwt.Parse(token, func(*jwt.Token) (any, error) { return s.Public.Key, nil },
				jwt.WithValidMethods([]string{alg}), jwt.WithoutClaimsValidation())
			require.NoError(t, err, "golang-jwt takes it")
			_, err = s.Sign(context.Background(), "jwt", payload)
			require.Error(t, err, "a typ that is not ours")
		}
	}
}

func TestSignersThatAreRefused(t *testing.T) {
	t.Parallel()
	k := testKeys(t)["ES256"]
	for name, c := range map[string]struct {
		kid, alg string
		key      any
	}{
		"nothing":          {"k", "ES256", nil},
		"a public key":     {"k", "ES256", k.public.Key},
		"a short secret":   {"k", "HS256", []byte("short")},
		"another alg":      {"k", "RS256", k.private},
		"a kid too long":   {strings.Repeat("k", maxKID+1), "ES256", k.private},
		"a kid not UTF-8":  {"\xff", "ES256", k.private},
		"a nil public key": {"k", "EdDSA", publicSigner{(*ed25519.PublicKey)(nil)}},
		"no public key":    {"k", "EdDSA", publicSigner{nil}},
	} {
		_, err := NewSigner(c.kid, c.alg, c.key, false)
		require.Error(t, err, name)
	}
}

type publicSigner struct{ public crypto.PublicKey }

func (s publicSigner) Public() crypto.PublicKey { return s.public }
func (s publicSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("not asked for")
}

// outside is a signer in another process.
type outside struct {
	crypto.Signer
	answer func([]byte) ([]byte, error)
}

func (s outside) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := s.Signer.Sign(r, digest, opts)
	if err != nil {
		return nil, err
	}
	return s.answer(sig)
}

func TestSignerOutsideIsNotBelieved(t *testing.T) {
	t.Parallel()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	for name, answer := range map[string]func([]byte) ([]byte, error){
		"an error":          func([]byte) ([]byte, error) { return nil, io.ErrUnexpectedEOF },
		"nothing":           func([]byte) ([]byte, error) { return nil, nil },
		"a panic":           func([]byte) ([]byte, error) { panic("a bug of the host's") },
		"junk":              func([]byte) ([]byte, error) { return []byte("0123456789"), nil },
		"cut":               func(sig []byte) ([]byte, error) { return sig[:len(sig)-1], nil },
		"longer":            func(sig []byte) ([]byte, error) { return append(sig, 0), nil },
		"of something else": func([]byte) ([]byte, error) { return ecdsa.SignASN1(rand.Reader, private, make([]byte, 32)) },
		"numbers too large": func([]byte) ([]byte, error) {
			return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).Lsh(big.NewInt(1), 300), big.NewInt(1)})
		},
		"numbers below zero": func([]byte) ([]byte, error) {
			return asn1.Marshal(struct{ R, S *big.Int }{big.NewInt(-1), big.NewInt(-1)})
		},
		"numbers that are no": func([]byte) ([]byte, error) { return []byte{0x30, 6, 0x02, 0, 0x02, 0, 0x02, 0}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := NewSigner("k", "ES256", outside{private, answer}, true)
			require.NoError(t, err)
			token, err := s.Sign(context.Background(), "at+jwt", []byte("{}"))
			require.Error(t, err)
			require.Empty(t, token)
		})
	}
}

func TestSignerOutsideIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	release := make(chan struct{})
	defer close(release)
	ctx, cancel := context.WithCancel(context.Background())
	s, err := NewSigner("k", "ES256", outside{private, func(sig []byte) ([]byte, error) {
		cancel()
		<-release
		return sig, nil
	}}, true)
	require.NoError(t, err)
	_, err = s.Sign(ctx, "at+jwt", []byte("{}"))
	require.ErrorIs(t, err, context.Canceled)
}

// The numbers of an ECDSA signature gain zeros on the way out of DER.
func TestECDSAForms(t *testing.T) {
	t.Parallel()
	for _, half := range []int{32, 48, 66} {
		for _, r := range []*big.Int{big.NewInt(0), big.NewInt(1), big.NewInt(0x7f), big.NewInt(0x80), new(big.Int).Lsh(big.NewInt(1), uint(8*half-1)), new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), uint(8*half)), big.NewInt(1))} {
			s := new(big.Int).Add(new(big.Int).Rsh(r, 1), big.NewInt(3))
			flat := append(r.FillBytes(make([]byte, half)), s.FillBytes(make([]byte, half))...)
			want, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
			require.NoError(t, err)
			back, err := fixedWidth(nil, want, half)
			require.NoError(t, err)
			require.Equal(t, flat, back)
		}
	}
}

func TestClaimsAsText(t *testing.T) {
	t.Parallel()
	require.Equal(t, `{}`, string(AppendClaims(nil, &Claims{}, nil)))
	require.Equal(t, `x{}`, string(AppendClaims([]byte("x"), &Claims{}, []byte("{}"))))
	require.Equal(t, `{"a":1}`, string(AppendClaims(nil, &Claims{}, []byte(`{"a":1}`))))
	require.Equal(t,
		`{"iss":"i","sub":"\u0000\"\\\u001f\ufffd","aud":["a","b"],"exp":3,"iat":1,"nbf":2,"act":{"sub":"x","iss":"y","act":{"sub":"z"}},"cnf":{"jkt":"p"},"own":true}`,
		string(AppendClaims(nil, &Claims{
			Issuer: "i", Subject: "\x00\"\\\x1f\xff", Audience: []string{"a", "b"}, Expires: 3, IssuedAt: 1, NotBefore: 2,
			Actors: []Actor{{Subject: "x", Issuer: "y"}, {Subject: "z"}}, Binding: "jkt:p",
		}, []byte(`{"own":true}`))))
}

func TestReservedNames(t *testing.T) {
	t.Parallel()
	for _, name := range claimNames {
		for _, n := range []string{name, strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:]} {
			require.Error(t, checkPrivate([]byte(`{"`+n+`":1}`)), n)
		}
	}
	require.NoError(t, checkPrivate([]byte(`{"tenant":"a","x":{"sub":"b"}}`)))
	for _, doc := range []string{``, `null`, `[]`, `{"a":1}{}`, `{"a":1,"A":1}`, "{\"a\":\"\xff\"}"} {
		require.Error(t, checkPrivate([]byte(doc)), doc)
	}
}
