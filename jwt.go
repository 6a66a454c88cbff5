// For programs that use golang-jwt/jwt/v5: a validated token as its claims and its Token.

package apitoken

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// For programs that use github.com/golang-jwt/jwt/v5 already: their claims types, their parser's place, their keys.

// RegisteredClaims is what t says by the registered claims of RFC 7519 §4.1. NotBefore is nil: it has passed. ExpiresAt is nil for
// API keys without expiry.
func (t Token) RegisteredClaims() jwt.RegisteredClaims {
	s := t.spec()
	c := jwt.RegisteredClaims{Issuer: s.Issuer, Subject: s.Subject, Audience: t.Audiences(), ID: s.ID}
	if !s.ExpiresAt.IsZero() {
		c.ExpiresAt = jwt.NewNumericDate(s.ExpiresAt)
	}
	if !s.IssuedAt.IsZero() {
		c.IssuedAt = jwt.NewNumericDate(s.IssuedAt)
	}
	return c
}

// allClaims is the JSON object of the registered claims and the host's own, whose names differ.
func (t Token) allClaims() ([]byte, error) {
	doc, err := json.Marshal(t.RegisteredClaims())
	if err != nil || len(t.d.claim) == 0 {
		return doc, err
	}
	return append(append(doc[:len(doc)-1], ','), t.d.claim[1:]...), nil
}

// ParseWithClaims takes the place of jwt.ParseWithClaims: v decides whether the credential is good, by everything that
// [Validator.Validate] checks, and claims is filled from it, a jwt.MapClaims or a pointer to a struct that embeds
// jwt.RegisteredClaims. There is no Keyfunc and there are no options: the validator knows its keys, issuers, audiences and clocks.
// A Validate method of claims' own (jwt.ClaimsValidator) is called last.
//
// The error is v's, and one of jwt's own to errors.Is: jwt.ErrTokenExpired, jwt.ErrTokenInvalidClaims, jwt.ErrTokenMalformed or
// jwt.ErrTokenUnverifiable. The token is nil then, and claims is as it was, unless only claims' own Validate refused.
//
// Every member of an access token of ours is there, scope and client_id too. Of what is none, an API key or a token of an issuer
// that is not Own, the claims are those of [Token.Claims], since its scope is worth only what [Token.Scopes] says; the *jwt.Token
// has neither Method, Header nor Signature then.
func ParseWithClaims(ctx context.Context, v Validator, c Credential, claims jwt.Claims) (*jwt.Token, error) {
	if claims == nil {
		return nil, fail(ErrInvalidRequest, "ParseWithClaims needs claims to fill")
	}
	t, err := v.Validate(ctx, c)
	if err == nil && t.IsZero() {
		err = fail(ErrInvalidToken, "the validator returned no token")
	}
	if err != nil {
		return nil, &jwtError{err, jwtClass(err)}
	}

	out := &jwt.Token{Raw: c.Token, Header: map[string]any{}, Valid: true}
	var doc []byte
	if t.ownJWT() {
		doc, err = splitJWT(c.Token, out)
	} else {
		doc, err = t.allClaims()
	}
	if err == nil {
		out.Claims, err = decodeClaims(doc, claims)
	}
	if err != nil {
		return nil, &jwtError{&Error{Code: ErrInvalidToken, Detail: "its claims do not fit the type that they are to fill", Cause: err}, jwt.ErrTokenMalformed}
	}
	if own, ok := out.Claims.(jwt.ClaimsValidator); ok {
		if err := own.Validate(); err != nil {
			return nil, &jwtError{&Error{Code: ErrInvalidToken, Detail: "the host's own Validate of the claims", Cause: err}, errors.Join(jwt.ErrTokenInvalidClaims, err)}
		}
	}
	return out, nil
}

// ownJWT reports whether t is as the JWT that it came from says, word for word.
func (t Token) ownJWT() bool {
	if t.d.by == nil || t.d.APIKey {
		return false
	}
	iss := t.d.by.trusts[t.d.Issuer]
	return iss != nil && iss.own
}

// splitJWT fills t from a token that was verified, and returns its payload.
func splitJWT(token string, t *jwt.Token) ([]byte, error) {
	var parts [3][]byte
	for i, text := range strings.SplitN(token, ".", 3) {
		var err error
		if parts[i], err = base64.RawURLEncoding.DecodeString(text); err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(parts[0], &t.Header); err != nil {
		return nil, err
	}
	alg, _ := t.Header["alg"].(string)
	if alg == "Ed25519" { // RFC 9864's name of what jwt/v5 calls EdDSA
		alg = "EdDSA"
	}
	t.Method, t.Signature = jwt.GetSigningMethod(alg), parts[2]
	return parts[1], nil
}

// decodeClaims decodes doc into claims, and returns what is filled: a map that was nil is another one then.
func decodeClaims(doc []byte, claims jwt.Claims) (jwt.Claims, error) {
	if m, ok := claims.(jwt.MapClaims); ok {
		err := json.Unmarshal(doc, &m)
		return m, err
	}
	return claims, json.Unmarshal(doc, claims)
}

// jwtClass is what jwt/v5 would have answered where this package answers err.
func jwtClass(err error) error {
	switch {
	case errors.Is(err, ErrExpired):
		return errors.Join(jwt.ErrTokenInvalidClaims, jwt.ErrTokenExpired)
	case errors.Is(err, ErrRevoked):
		return jwt.ErrTokenInvalidClaims
	}
	return jwt.ErrTokenUnverifiable
}

// jwtError is an error of ours that is also one of jwt's to errors.Is. It shows what ours shows.
type jwtError struct{ err, class error }

func (e *jwtError) Error() string                 { return e.err.Error() }
func (e *jwtError) Unwrap() []error               { return []error{e.err, e.class} }
func (e *jwtError) LogValue() slog.Value          { return slog.AnyValue(e.err).Resolve() }
func (e *jwtError) Format(f fmt.State, verb rune) { fmt.Fprintf(f, fmt.FormatString(f, verb), e.err) }

// Keyfunc is a jwt.Keyfunc on the published keys, for code that can't call [ParseWithClaims] yet:
//
//	jwt.ParseWithClaims(token, claims, svc.SigningKeys.Keyfunc, jwt.WithIssuer(…), jwt.WithAudience(…), jwt.WithExpirationRequired())
//
// It finds the key by kid, and refuses another algorithm than the key's, an audience that the key doesn't sign for, and a key that
// was declared compromised. It does not see the rest: that a token, its session, subject or client was revoked, its typ, so that
// what is no access token passes for one, and whether the caller proved the key or certificate that the token is bound to. Without
// the options above jwt/v5 looks at neither issuer nor audience, and takes a token without an expiry. Keys of HS256 are not given
// out: whoever has one signs.
func (k *SigningKeys) Keyfunc(t *jwt.Token) (any, error) {
	kid, _ := t.Header["kid"].(string)
	for _, key := range k.ring.PublicKeys() {
		if key.KID != kid || k.s.rules.Signed(kid) {
			continue
		}
		if _, secret := key.Key.([]byte); secret {
			return nil, fail(ErrInvalidRequest, "a key of HS256 is not given out: use ParseWithClaims of this package")
		}
		if t.Method == nil || t.Method.Alg() != key.Alg {
			return nil, fail(ErrInvalidToken, "alg is not the key's own")
		}
		var aud []string
		if t.Claims != nil {
			var err error
			if aud, err = t.Claims.GetAudience(); err != nil {
				return nil, &Error{Code: ErrInvalidToken, Detail: "aud", Cause: err}
			}
		}
		if !key.SignsFor(aud) {
			return nil, fail(ErrInvalidToken, "its key signs for another audience")
		}
		return key.Key, nil
	}
	return nil, fail(ErrInvalidToken, "no published key has the token's kid")
}
