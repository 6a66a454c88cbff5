module github.com/apitoken-go/apitoken/examples/hsm

go 1.25.0

replace github.com/apitoken-go/apitoken => ../..

require (
	github.com/ThalesGroup/crypto11 v1.6.2
	github.com/apitoken-go/apitoken v0.0.0-00010101000000-000000000000
)

require (
	github.com/go-jose/go-jose/v4 v4.1.9 // indirect
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	github.com/miekg/pkcs11 v1.1.2 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/thales-e-security/pool v0.0.2 // indirect
	go.etcd.io/bbolt v1.5.0 // indirect
	golang.org/x/sys v0.45.0 // indirect
)
