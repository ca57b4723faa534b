package registry

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Pair is a certificate and its key, in PEM.
type Pair struct {
	Cert, Key []byte
	cert      *x509.Certificate
	key       *rsa.PrivateKey
}

// NewCA makes an authority that nobody knows yet.
func NewCA(name string) (*Pair, error) {
	return newPair(nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	})
}

// NewServer makes a certificate of a server on 127.0.0.1, also named localhost, that ca vouches for.
func NewServer(ca *Pair) (*Pair, error) {
	return newPair(ca, &x509.Certificate{
		Subject: pkix.Name{CommonName: "registry"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// newPair makes a key and a certificate for it, valid for a day around now, signed by ca or by itself.
func newPair(ca *Pair, c *x509.Certificate) (*Pair, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	if c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	c.NotBefore, c.NotAfter = time.Now().Add(-12*time.Hour), time.Now().Add(12*time.Hour)
	parent, signer := c, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	p := &Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
		key:  key,
	}
	p.cert, err = x509.ParseCertificate(der)
	return p, err
}
