PATH=/opt/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH LABKIT_CACHE=/var/cache/labkit LABKIT_OUTCOMES=/var/tmp/outcomes
cd /lab 2>/dev/null || cd /
