// Signing DPoP proofs.

package jws

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// Prover makes DPoP proofs (RFC 9449 §4.2) with one key.
type Prover struct {
	Thumbprint string // of the public key (RFC 7638)
	signer     *Signer
	prefix     string // header and dot
}

// NewProver prepares a key: ECDSA on P-256, P-384 or P-521, Ed25519, or RSA, which signs by PS256. A key of another type than the
// standard library's may live outside the process: it is given a deadline, and what it answers is verified.
func NewProver(key crypto.Signer) (*Prover, error) {
	if key == nil {
		return nil, fmt.Errorf("jws: no key")
	}
	alg, pub := "", key.Public()
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		for name, curve := range curves {
			if pub.Curve == curve {
				alg = name
			}
		}
	case ed25519.PublicKey:
		alg = "EdDSA"
	case *rsa.PublicKey:
		alg = "PS256"
	default:
		return nil, fmt.Errorf("jws: a %T makes no proofs", pub)
	}
	local := false
	switch key.(type) {
	case *ecdsa.PrivateKey, *rsa.PrivateKey, ed25519.PrivateKey:
		local = true
	}
	s, err := NewSigner("", alg, key, !local)
	if err != nil {
		return nil, err
	}
	p := &Prover{signer: s}
	if p.Thumbprint, err = Thumbprint(s.Public.Key); err != nil {
		return nil, err
	}
	jwk, err := (&jose.JSONWebKey{Key: s.Public.Key}).MarshalJSON()
	if err != nil {
		return nil, err
	}
	header := append([]byte(`{"alg":"`+s.Public.Alg+`","jwk":`), jwk...)
	header = append(header, `,"typ":"dpop+jwt"}`...)
	p.prefix = base64.RawURLEncoding.EncodeToString(header) + "."
	return p, nil
}

// Sign makes a proof of a JSON payload.
func (p *Prover) Sign(ctx context.Context, payload []byte) (string, error) {
	return p.signer.sign(ctx, p.prefix, payload)
}
